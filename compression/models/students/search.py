"""`student: auto`: the best student within a budget, out of many that differ in width by layer, in depth and in kind.

1. Candidates. Each starts from one of several models (the teacher, the teacher with fewer blocks, architectures that
   the task offers) and is pruned until it just fits, with widths drawn for each layer: the layer keeps f^e of its
   channels, log e uniform, and f is found by bisection. The first of each start has all layers alike (e = 1).
2. A score without training, of one batch; the best of each start are finalists, and so is the first (`SCORES`).
3. Successive halving: all finalists are distilled for a short while, the better half for twice as long, and so on. What
   is better is said by accuracy on validation data, and between equals by loss; the test part is not read.

What is found is an architecture with the weights that it starts from; its distillation is up to the caller.

Scores: J. Mellor, J. Turner, A. Storkey, E. Crowley, "Neural Architecture Search without Training", ICML 2021, section
3 (`naswot`); M. Abdelfattah, A. Mehrotra, L. Dudziak, N. Lane, "Zero-Cost Proxies for Lightweight NAS", ICLR 2021,
section 3.2 (`synflow`, `gradient_norm`). `agreement` is for students that inherit weights: what pruning has left of the
teacher's answers. Which one says most is measured: docs/results/students.md.

Halving: K. Jamieson, A. Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS
2016, section 2.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedpress.compression import seeds
from fedpress.compression.models.distillation import distill
from fedpress.compression.models.distillation.distill import Distillation
from fedpress.compression.models.distillation.teachers import Teacher
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.students import depth, widths
from fedpress.compression.models.students.budgets import Budget
from fedpress.compression.models.students.initial_student import fresh
from fedpress.compression.models.task import Task, evaluate

PRUNED: Final = "pruned"
"""The start that is the teacher itself."""
BATCH: Final = 64
"""Proxy examples that a score sees."""


@dataclass(frozen=True)
class Search:
    """Settings of a search.

    Attributes:
        candidates: How many are scored, of all starts together.
        finalists: How many of them are distilled for a while; the search takes about log2(finalists) times as long as
            the distillation of one student.
        score: What ranks the candidates: a name in `SCORES`.
        spread: Exponents of widths are between 1 / spread and spread.
        architectures: Of the task (`Task.students`), that take part beside the teacher.
    """

    candidates: int = 24
    finalists: int = 8
    score: str = "synflow"
    spread: float = 2.0
    architectures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.finalists <= self.candidates:
            raise ValueError(
                f"a search has at least 1 finalist and at most as many as candidates, got {self.finalists} of"
                f" {self.candidates}"
            )
        if self.score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {self.score!r}")
        if not 1 <= self.spread < math.inf:
            raise ValueError(f"spread must be at least 1, which leaves all layers alike, got {self.spread}")


@dataclass(frozen=True)
class Candidate:
    """One architecture that was looked at.

    Attributes:
        start: The model that it was pruned from: `PRUNED`, or another start's name.
        widths: Channels or heads left in each layer that can be made smaller.
        parameters: How many it has.
        cost: In the budget's unit.
        score: Without training; only comparable within one start.
        epochs: Of its longest distillation in the search; 0: it was no finalist.
        accuracy: On validation data after that; None: it was no finalist.
        loss: The same.
        uniform: Whether all its layers keep the same fraction.
        chosen: Whether it is the one.
    """

    start: str
    widths: dict[str, int]
    parameters: int
    cost: float
    score: float
    epochs: int = 0
    accuracy: float | None = None
    loss: float | None = None
    uniform: bool = False
    chosen: bool = False


class Found(NamedTuple):
    """What a search has found.

    Attributes:
        student: The chosen model, with the weights that its distillation starts from.
        architecture: Of the task, whose it is; None: the teacher's, pruned.
        candidates: All of them, finalists first, the chosen one at the head.
    """

    student: nn.Module
    architecture: str | None
    candidates: tuple[Candidate, ...]


class Step(NamedTuple):
    """How far a search has come: `done` of `total` units of work, and what comes now."""

    done: int
    total: int
    text: str


def starts(model: nn.Module, task: Task, architectures: Sequence[str] = (), *, seed: int) -> dict[str, nn.Module]:
    """Return the models that students may be pruned from, by name.

    The model itself; where it has blocks that may be dropped, the model with every second and with every third; and
    fresh ones of the task's other architectures.

    Args:
        model: Untouched.
        task: Whose architectures there are.
        architectures: Which of them take part.
        seed: Of their weights.

    Raises:
        UnknownArchitecture: The task has no student of this name.
    """
    found = {PRUNED: model}
    blocks = depth.depth_of(model)
    for step, name in ((2, "every second block"), (3, "every third block")):
        if blocks >= step:
            found[name] = depth.keep_every(model, step)
    return found | {name: fresh(task, name, seed=seed) for name in architectures}


def search(
    model: nn.Module,
    task: Task,
    budget: Budget,
    settings: Search,
    distillation: Distillation = distill.DEFAULTS,
    *,
    teacher: nn.Module | Teacher | None = None,
    inputs: Tensor | None = None,
    targets: Tensor | None = None,
    seed: int,
    progress: Callable[[Step], None] = lambda _: None,
) -> Found:
    """Look for the best student of a model within a budget; the same arguments find the same.

    Args:
        model: What is pruned; untouched.
        task: Whose validation data choose.
        budget: What the student may cost; a fraction is of the model's parameters.
        settings: How long to look.
        distillation: Of the student in the end; finalists get 1/finalists of its epochs at first.
        teacher: Whose answers students learn; None: the model's.
        inputs: What they learn on, (N, ...); None: the task's proxy data.
        targets: Labels of that, if students may see them.
        seed: Of widths, fresh weights and distillations.
        progress: Is told before each piece of work.

    Raises:
        BudgetError: Even the smallest version of each start is too much.
        PruneError: A start cannot be pruned.
        UnknownArchitecture: The task has no student of a name in the settings.
    """
    splits, done = task.data(), settings.candidates
    total = done + sum(count for count, _ in _rungs(settings.finalists, distillation.epochs))
    inputs = splits.proxy.inputs if inputs is None else inputs
    pool = _pool(
        starts(model, task, settings.architectures, seed=seed), inputs[:BATCH], budget, settings, seed,
        lambda number: progress(_scoring(number, settings.candidates, total)),
    )  # fmt: skip
    ranked = _finalists([candidate for candidate, _ in pool], settings.finalists)
    finalists = [pool[index] for index in ranked]
    rest = [candidate for index, (candidate, _) in enumerate(pool) if index not in ranked]
    dropped: list[Candidate] = []
    for count, length in _rungs(len(finalists), distillation.epochs):
        judged: list[tuple[Candidate, nn.Module]] = []
        for number, (candidate, start) in enumerate(finalists):
            progress(Step(done, total, f"finalist {number + 1} of {count}, {length} epochs"))
            learner = distill.distill(
                teacher or model,
                start,
                inputs,
                replace(distillation, epochs=length),
                targets=targets,
                seed=seeds.derive("search", seed, str(candidate.widths), candidate.start, length),
            )
            seen = evaluate(learner, task, splits.validation)
            judged.append((replace(candidate, epochs=length, accuracy=seen.accuracy, loss=seen.loss), start))
            done += 1
        judged.sort(key=lambda one: (-(one[0].accuracy or 0.0), one[0].loss))
        finalists = judged[: max(1, count // 2)]
        dropped = [candidate for candidate, _ in judged[len(finalists) :]] + dropped
    (candidate, student), *_ = finalists
    chosen = replace(candidate, chosen=True)
    architecture = chosen.start if chosen.start in settings.architectures else None
    return Found(student, architecture, (chosen, *dropped, *rest))


def answers_of(model: nn.Module, batch: Tensor) -> Tensor:
    """The model's answers in evaluation mode, without gradients."""
    with torch.no_grad():
        answers: Tensor = copy.deepcopy(model).eval()(batch)
    return answers


def _pool(
    models: Mapping[str, nn.Module],
    batch: Tensor,
    budget: Budget,
    settings: Search,
    seed: int,
    progress: Callable[[int], None],
) -> list[tuple[Candidate, nn.Module]]:
    """Draw and score the candidates: those of one start together, the one with equal widths first; none twice."""
    found: dict[str, tuple[Candidate, nn.Module]] = {}
    failure: structural.BudgetError | None = None
    whole = models[PRUNED]
    answers = answers_of(whole, batch)
    limit = Budget(parameters=int(budget.most(whole))) if isinstance(budget.parameters, float) else budget
    done = 0
    for number, (start, model) in enumerate(models.items()):
        versions = widths.Widths(model, batch[:1])
        draw = torch.Generator().manual_seed(seeds.derive("widths", seed, start))
        for index in range(max(1, len(range(number, settings.candidates, len(models))))):
            progress(done)
            done += 1
            powers = settings.spread ** (2 * torch.rand(len(versions.layers), generator=draw, dtype=torch.float64) - 1)
            exponents = dict(zip(versions.layers, powers.tolist(), strict=True)) if index else None
            try:
                kept = versions.largest(limit, exponents)
            except structural.BudgetError as error:  # of this start, whatever the widths
                failure = error
                break
            if (key := f"{start} {kept}") in found:
                continue
            student = versions.pruned(kept)
            candidate = Candidate(
                start=start,
                widths=kept,
                parameters=structural.parameters_of(student),
                cost=limit.cost_of(student, batch[:1]),
                score=SCORES[settings.score](student, batch, answers),
                uniform=index == 0,
            )
            found[key] = candidate, student
    if not found:
        assert failure is not None
        raise failure
    return list(found.values())


def _scoring(number: int, candidates: int, total: int) -> Step:
    return Step(min(number, candidates), total, f"candidate {number + 1} of {candidates}")


def _finalists(candidates: list[Candidate], count: int) -> list[int]:
    """The indices of the finalists: the starts take turns, each with its equal widths first and then by score."""
    queues: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        queues.setdefault(candidate.start, []).append(index)
    for queue in queues.values():
        queue.sort(key=lambda index: (not candidates[index].uniform, -candidates[index].score))
    taken: list[int] = []
    while len(taken) < min(count, len(candidates)):
        for queue in queues.values():
            if queue and len(taken) < count:
                taken.append(queue.pop(0))
    return taken


def _rungs(count: int, epochs: int) -> list[tuple[int, int]]:
    """How many are distilled and for how many epochs, rung by rung; the last has two, unless there is but one."""
    rungs, length = [], epochs / max(1, count)
    while count > 1:
        rungs.append((count, max(1, round(length))))
        count, length = count // 2, 2 * length
    return rungs or [(1, max(1, epochs // 2))]


# ---- scores: of a candidate, a batch (N, ...) and the teacher's answers to it; the higher, the better ---------------


def naswot(model: nn.Module, batch: Tensor, answers: Tensor) -> float:
    """log |det K|, K (N, N) the number of rectifiers that two examples switch alike: how well it tells them apart.

    A model without rectifiers gets minus infinity.
    """
    with torch.no_grad(), _Rectified() as seen:
        copy.deepcopy(model).eval()(batch)
    if not seen.codes:
        return -math.inf
    codes = torch.cat([code.flatten(1) for code in seen.codes if len(code) == len(batch)], dim=1).double()
    alike = codes @ codes.T + (1 - codes) @ (1 - codes).T
    return float(torch.linalg.slogdet(alike).logabsdet)


def synflow(model: nn.Module, batch: Tensor, answers: Tensor) -> float:
    """log of the sum of w * dR/dw over all weights, R the sum of the answers to ones, each weight its magnitude."""
    positive = copy.deepcopy(model).double().eval()
    for tensor in [*positive.parameters(), *(b for b in positive.buffers() if b.is_floating_point())]:
        tensor.data.abs_()
    example = torch.ones_like(batch[:1])
    torch.autograd.backward(positive(example.double() if example.is_floating_point() else example).sum())
    flow = sum(float((p.detach() * p.grad).abs().sum()) for p in positive.parameters() if p.grad is not None)
    return math.log(flow) if flow > 0 else -math.inf


def gradient_norm(model: nn.Module, batch: Tensor, answers: Tensor) -> float:
    """L2 norm of the gradient of the distillation's loss over the batch."""
    learner = copy.deepcopy(model).eval()
    torch.autograd.backward(distill.distillation_loss(learner(batch), answers, temperature=1.0))
    return math.sqrt(sum(float(p.grad.square().sum()) for p in learner.parameters() if p.grad is not None))


def agreement(model: nn.Module, batch: Tensor, answers: Tensor) -> float:
    """Minus the divergence from the teacher's answers."""
    return -float(distill.distillation_loss(answers_of(model, batch), answers, temperature=1.0))


SCORES: Final[Mapping[str, Callable[[nn.Module, Tensor, Tensor], float]]] = {
    "naswot": naswot,
    "synflow": synflow,
    "gradient_norm": gradient_norm,
    "agreement": agreement,
}
"""By name."""


class _Rectified(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which entries rectifiers let through, also those that are called as functions."""

    KINDS = (
        torch.ops.aten.relu,
        torch.ops.aten.relu_,
        torch.ops.aten.gelu,
        torch.ops.aten.silu,
        torch.ops.aten.leaky_relu,
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.codes: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func._overloadpacket in self.KINDS:
            self.codes.append(answer > 0)
        return answer
