"""`student: auto`: the best student within a budget, out of many that differ in width by layer, in depth and in kind.

1. Candidates. Each starts from one of several models (the teacher, the teacher with fewer blocks, architectures that
   the task offers) and is pruned until it just fits, with widths drawn for each layer: the layer keeps f^e of its
   channels, log e uniform, and f is found by bisection. The first of each start has all layers alike (e = 1).
2. A score without training, of one batch; the best of each start are finalists, and so is the first (`SCORES`).
3. Successive halving: all finalists are distilled for a short while, the better half for twice as long, and so on. What
   is better is said by accuracy on validation data, and between equals by loss; the test part is not read.

The outcome is an architecture with the weights that it starts from; its distillation is up to the caller.

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
from fedpress.compression.models.distillation import distill, loss
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.step import CandidateResult, Materials, SearchProgress, Student, Teacher
from fedpress.compression.models.students import budgets, depth, widths
from fedpress.compression.models.students.initial_student import PruneToBudget, fresh
from fedpress.compression.models.students.settings import Budget, Search
from fedpress.compression.models.task import Task, evaluate

PRUNED: Final = "pruned"
"""The start that is the teacher itself."""
BATCH: Final = 64
"""Proxy examples that a score sees."""


@dataclass(frozen=True)
class SearchStudent:
    """Step: the best student within the budget is searched for, and begins with the weights that it inherits.

    Attributes:
        budget: What it may cost, in another way than `removed_fraction`.
        settings: How long to look.
        distillation: Of the student in the end; finalists get 1/finalists of its epochs at first.
        quantization: For `bundle_bytes`: how the file's weights are written.
    """

    budget: Budget
    settings: Search = Search()
    distillation: Distillation = Distillation()
    quantization: Quantization = Quantization()

    def check(self, model: nn.Module, task: Task) -> None:
        """Raise what pruning the global model to the budget raises."""
        self.alike.check(model, task)

    @property
    def alike(self) -> PruneToBudget:
        """The step without a search: the model pruned alike in every layer."""
        return PruneToBudget(self.budget, quantization=self.quantization)

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the chosen student, not yet distilled, and the candidates."""
        best = search(
            student.model,
            materials.task,
            self.budget,
            self.settings,
            self.distillation,
            self.quantization,
            teacher=materials.teacher,
            inputs=materials.inputs,
            targets=materials.targets,
            seed=materials.seed,
            progress=materials.progress,
        )
        return replace(
            student.after("pruned", best.student), architecture=best.architecture, candidates=best.candidates
        )


class SearchResult(NamedTuple):
    """The student that a search chose.

    Attributes:
        student: The chosen model, with the weights that its distillation starts from.
        architecture: Of the task, whose it is; None: the teacher's, pruned.
        candidates: All of them, finalists first, the chosen one at the head.
    """

    student: nn.Module
    architecture: str | None
    candidates: tuple[CandidateResult, ...]


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
    models = {PRUNED: model}
    blocks = depth.depth_of(model)
    for step, name in ((2, "every second block"), (3, "every third block")):
        if blocks >= step:
            models[name] = depth.keep_every(model, step)
    return models | {name: fresh(task, name, seed=seed) for name in architectures}


def search(
    model: nn.Module,
    task: Task,
    budget: Budget,
    settings: Search,
    distillation: Distillation = Distillation(),
    quantization: Quantization = Quantization(),
    *,
    teacher: nn.Module | Teacher | None = None,
    inputs: Tensor | None = None,
    targets: Tensor | None = None,
    seed: int,
    progress: Callable[[SearchProgress], None] = lambda _: None,
) -> SearchResult:
    """Look for the best student of a model within a budget; the same arguments find the same.

    Args:
        model: What is pruned; untouched.
        task: Whose validation data choose.
        budget: What the student may cost; a fraction is of the model's parameters.
        settings: How long to look.
        distillation: Of the student in the end; finalists get 1/finalists of its epochs at first.
        quantization: For `bundle_bytes`: how the file's weights are written.
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
    total = done + sum(count for count, _ in halving_rungs(settings.finalists, distillation.epochs))
    inputs = splits.proxy.inputs if inputs is None else inputs
    pool = _pool(
        starts(model, task, settings.architectures, seed=seed), inputs[:BATCH], budget, settings, quantization, seed,
        lambda number: progress(_scoring(number, settings.candidates, total)),
    )  # fmt: skip
    ranked = choose_finalists([candidate for candidate, _ in pool], settings.finalists)
    finalists = [pool[index] for index in ranked]
    rest = [candidate for index, (candidate, _) in enumerate(pool) if index not in ranked]
    dropped: list[CandidateResult] = []
    for count, length in halving_rungs(len(finalists), distillation.epochs):
        judged: list[tuple[CandidateResult, nn.Module]] = []
        for number, (candidate, start) in enumerate(finalists):
            progress(SearchProgress(done, total, f"finalist {number + 1} of {count}, {length} epochs"))
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
        judged.sort(key=lambda pair: (-(pair[0].accuracy or 0.0), pair[0].loss))
        finalists = judged[: max(1, count // 2)]
        dropped = [candidate for candidate, _ in judged[len(finalists) :]] + dropped
    (candidate, student), *_ = finalists
    chosen = replace(candidate, chosen=True)
    architecture = chosen.start if chosen.start in settings.architectures else None
    return SearchResult(student, architecture, (chosen, *dropped, *rest))


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
    quantization: Quantization,
    seed: int,
    progress: Callable[[int], None],
) -> list[tuple[CandidateResult, nn.Module]]:
    """Draw and score the candidates: those of one start together, the one with equal widths first; none twice."""
    pool: dict[str, tuple[CandidateResult, nn.Module]] = {}
    failure: structural.BudgetError | None = None
    whole = models[PRUNED]
    answers = answers_of(whole, batch)
    limit = Budget(parameters=int(budgets.most(budget, whole))) if isinstance(budget.parameters, float) else budget
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
                kept = versions.largest(limit, exponents, quantization)
            except structural.BudgetError as error:  # of this start, whatever the widths
                failure = error
                break
            if (key := f"{start} {kept}") in pool:
                continue
            student = versions.pruned(kept)
            candidate = CandidateResult(
                start=start,
                widths=kept,
                parameters=structural.parameters_of(student),
                cost=budgets.cost_of(student, batch[:1], limit, quantization),
                score=SCORES[settings.score](student, batch, answers),
                uniform=index == 0,
            )
            pool[key] = candidate, student
    if not pool:
        assert failure is not None
        raise failure
    return list(pool.values())


def _scoring(number: int, candidates: int, total: int) -> SearchProgress:
    return SearchProgress(min(number, candidates), total, f"candidate {number + 1} of {candidates}")


def choose_finalists(candidates: list[CandidateResult], count: int) -> list[int]:
    """Return the indices of the finalists: the starts take turns, each with its equal widths first, then by score.

    Args:
        candidates: All of them, scored.
        count: The most that are chosen.
    """
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


def halving_rungs(count: int, epochs: int) -> list[tuple[int, int]]:
    """Return (models, epochs) of each rung of successive halving; the last rung has two models, unless `count` is 1.

    Args:
        count: Models in the first rung.
        epochs: Of the student's final distillation; the first rung gets `epochs / count` of them.
    """
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
    torch.autograd.backward(loss.distillation_loss(learner(batch), answers, temperature=1.0))
    return math.sqrt(sum(float(p.grad.square().sum()) for p in learner.parameters() if p.grad is not None))


def agreement(model: nn.Module, batch: Tensor, answers: Tensor) -> float:
    """Minus the divergence from the teacher's answers."""
    return -float(loss.distillation_loss(answers_of(model, batch), answers, temperature=1.0))


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
