"""Architecture search: the best student within a budget, among candidates of different widths, depths and kinds.

1. Candidates: each starts from one of several models (the teacher, the teacher with fewer blocks, architectures of the
   task) and is pruned until it just fits, with random widths: a layer keeps f^e of its channels, log e uniform, and f
   is found by bisection. The first candidate of each start is uniform (e = 1).
2. A score without training, from one batch (`SCORES`): the best of each start are finalists, and so is the uniform one.
3. Successive halving: all finalists are distilled for a short time, the better half for twice as long, and so on.
   Accuracy on validation data decides, and loss breaks ties; the test part is not read.

The result is an architecture with its initial weights; the caller distills it.

Scores: J. Mellor, J. Turner, A. Storkey, E. Crowley, "Neural Architecture Search without Training", ICML 2021, section
3 (`naswot`); M. Abdelfattah, A. Mehrotra, L. Dudziak, N. Lane, "Zero-Cost Proxies for Lightweight NAS", ICLR 2021,
section 3.2 (`synflow`, `gradient_norm`). `agreement` is for students that inherit weights: the agreement of the pruned
model with the teacher. Their correlations with final accuracy are measured in docs/results/students.md.

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
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.distillation import distill, loss, teachers
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.distillation.teachers import LAST
from fedpress.compression.models.inputs import Batch, Inputs
from fedpress.compression.models.pruning import importance, structural, token_rows
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.pruning.settings import Pruning
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.reproducible import evaluating
from fedpress.compression.models.step import CandidateResult, Materials, SearchProgress, Student, Teacher
from fedpress.compression.models.students import budgets, depth, widths
from fedpress.compression.models.students.initial_student import PruneToBudget, fresh
from fedpress.compression.models.students.settings import Budget, Search
from fedpress.compression.models.task import Task, class_axis_of, evaluate

PRUNED: Final = "pruned"
"""Name of the start that is the teacher itself."""
BATCH: Final = 64
"""Number of proxy examples of a score."""


@dataclass(frozen=True)
class SearchStudent:
    """Step: search for the best student within the budget; it keeps the weights that it inherits.

    Attributes:
        budget: Budget of a kind other than `removed_fraction`.
        settings: Extent of the search.
        distillation: Final distillation of the student; finalists first get 1/finalists of its epochs.
        quantization: For `bundle_bytes`: quantization of the weights.
        pruning: Settings that name layers to ignore, and say whether rows of tokens that do not occur go first.
    """

    budget: Budget
    settings: Search = Search()
    distillation: Distillation = Distillation()
    quantization: Quantization = Quantization()
    pruning: Pruning = Pruning()

    def check(self, model: nn.Module, task: Task) -> None:
        """Check that the budget can be met, with the errors of `PruneToBudget`.

        Args:
            model: Global model with any weights; untouched.
            task: Task of the model.
        """
        self.uniform.check(model, task)

    @property
    def uniform(self) -> PruneToBudget:
        """The step without a search: uniform pruning of the global model."""
        return PruneToBudget(self.budget, pruning=self.pruning, quantization=self.quantization)

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the chosen student, not yet distilled, with the figures of all candidates.

        Args:
            student: Student whose model is the teacher.
            materials: Teacher, data and seed.
        """
        best = search(
            student.model,
            materials.task,
            self.budget,
            self.settings,
            self.distillation,
            self.quantization,
            importance.named(self.pruning),
            teacher=materials.teacher,
            inputs=materials.inputs,
            targets=materials.targets,
            seed=materials.seed,
            progress=materials.progress,
            narrow=lambda start: token_rows.with_used_rows(
                self.pruning, start, materials.inputs, materials.task.data().validation.inputs
            ),
        )
        return replace(
            student.after("pruned", best.student), architecture=best.architecture, candidates=best.candidates
        )


class SearchResult(NamedTuple):
    """Result of a search.

    Attributes:
        student: Chosen model with its initial weights.
        architecture: Name of one of the task's student architectures; None: the pruned teacher.
        candidates: Figures of all candidates: the chosen one, the other finalists, the rest.
    """

    student: nn.Module
    architecture: str | None
    candidates: tuple[CandidateResult, ...]


def starts(model: nn.Module, task: Task, architectures: Sequence[str] = (), *, seed: int) -> dict[str, nn.Module]:
    """Return the models that students may be pruned from, by name.

    These are the model itself; where it has removable blocks, the model with every second and every third of them; and
    fresh models of the task's student architectures.

    Args:
        model: Global model; untouched.
        task: Task that defines the student architectures.
        architectures: Names of those that take part.
        seed: Seed of their weights.

    Raises:
        UnknownArchitecture: The task has no student architecture of a name.
    """
    models = {PRUNED: model}
    example = model_inputs.first(task.data().validation.inputs)
    blocks = depth.depth_of(model, example)
    for step, name in ((2, "every second block"), (3, "every third block")):
        if blocks >= step:
            models[name] = depth.drop(model, example, 1 / step)
    return models | {name: fresh(task, name, seed=seed) for name in architectures}


def search(
    model: nn.Module,
    task: Task,
    budget: Budget,
    settings: Search,
    distillation: Distillation = Distillation(),
    quantization: Quantization = Quantization(),
    criterion: Criterion = importance.DEFAULT,
    *,
    teacher: nn.Module | Teacher | None = None,
    inputs: Inputs | None = None,
    targets: Tensor | None = None,
    seed: int,
    progress: Callable[[SearchProgress], None] = lambda _: None,
    narrow: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> SearchResult:
    """Search for the best student of a model within a budget; equal arguments give equal results.

    Args:
        model: Global model to prune; untouched.
        task: Task whose validation data decide.
        budget: Budget; a fraction is of the model's parameters.
        settings: Extent of the search.
        distillation: Final distillation of the student; finalists first get 1/finalists of its epochs.
        quantization: For `bundle_bytes`: quantization of the weights.
        criterion: Order of removal within a layer, and the layers to ignore.
        teacher: Teacher of the finalists; None: the model.
        inputs: Inputs that they learn on, (N, ...); None: the task's proxy data.
        targets: Labels of these inputs, int64 (N,); None: the students see none.
        seed: Seed of widths, fresh weights and distillations.
        progress: Called before each unit of work.
        narrow: Maps a start to the one whose channels are pruned, such as with fewer rows (`token_rows`).

    Raises:
        BudgetError: Even the smallest version of each start exceeds the budget.
        PruneError: A start cannot be pruned.
        UnknownArchitecture: The task has no student architecture of a name in the settings.
    """
    splits, done = task.data(), settings.candidates
    known = class_axis_of(model, task)
    axis = -1 if known is None else known
    total = done + sum(count for count, _ in halving_rungs(settings.finalists, distillation.epochs))
    inputs = splits.proxy.inputs if inputs is None else inputs
    pool = _pool(
        {name: narrow(start) for name, start in starts(model, task, settings.architectures, seed=seed).items()},
        model, model_inputs.first(inputs, BATCH), budget, settings,
        quantization, criterion, seed,
        lambda number: progress(_scoring(number, settings.candidates, total)), axis,
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
                class_axis=axis,
                seed=seeds.derive("search", seed, str(candidate.widths), candidate.start, length),
            )
            figures = evaluate(learner, task, splits.validation)
            judged.append((replace(candidate, epochs=length, accuracy=figures.accuracy, loss=figures.loss), start))
            done += 1
        judged.sort(key=lambda pair: (-(pair[0].accuracy or 0.0), pair[0].loss))
        finalists = judged[: max(1, count // 2)]
        dropped = [candidate for candidate, _ in judged[len(finalists) :]] + dropped
    (candidate, student), *_ = finalists
    chosen = replace(candidate, chosen=True)
    architecture = chosen.start if chosen.start in settings.architectures else None
    return SearchResult(student, architecture, (chosen, *dropped, *rest))


def _pool(
    models: Mapping[str, nn.Module],
    whole: nn.Module,
    batch: Batch,
    budget: Budget,
    settings: Search,
    quantization: Quantization,
    criterion: Criterion,
    seed: int,
    progress: Callable[[int], None],
    class_axis: int,
) -> list[tuple[CandidateResult, nn.Module]]:
    """Return the scored candidates without duplicates: those of one start together, the uniform one first."""
    pool: dict[str, tuple[CandidateResult, nn.Module]] = {}
    failure: structural.BudgetError | None = None
    answers = teachers.logits(whole, batch, class_axis)
    limit = Budget(parameters=int(budgets.most(budget, whole))) if isinstance(budget.parameters, float) else budget
    done = 0
    for number, (start, model) in enumerate(models.items()):
        versions = widths.Widths(model, model_inputs.first(batch), criterion)
        draw = torch.Generator().manual_seed(seeds.derive("widths", seed, start))
        for index in range(max(1, len(range(number, settings.candidates, len(models))))):
            progress(done)
            done += 1
            powers = settings.spread ** (2 * torch.rand(len(versions.layers), generator=draw, dtype=torch.float64) - 1)
            exponents = dict(zip(versions.layers, powers.tolist(), strict=True)) if index else None
            try:
                kept = versions.largest(limit, exponents, quantization)
            except structural.BudgetError as error:  # at any widths of this start
                failure = error
                break
            if (key := f"{start} {kept}") in pool:
                continue
            student = versions.pruned(kept)
            candidate = CandidateResult(
                start=start,
                widths=kept,
                parameters=structural.parameters_of(student),
                cost=budgets.cost_of(student, model_inputs.first(batch), limit, quantization),
                score=SCORES[settings.score](student, batch, answers, class_axis),
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
    """Return the indices of the finalists: the starts take turns, each with its uniform candidate first, then by score.

    Args:
        candidates: Scored candidates.
        count: Largest number of finalists.
    """
    queues: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        queues.setdefault(candidate.start, []).append(index)
    for queue in queues.values():
        queue.sort(key=lambda index: (not candidates[index].uniform, -candidates[index].score))
    chosen: list[int] = []
    while len(chosen) < min(count, len(candidates)):
        for queue in queues.values():
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen


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


def naswot(model: nn.Module, batch: Batch, answers: Tensor, class_axis: int = LAST) -> float:
    """Return log |det K|, K (N, N) the number of rectifiers in equal states for two examples.

    It is large where the examples are well separated; a model without rectifiers gets minus infinity.

    Args:
        model: Candidate; untouched.
        batch: Inputs (N, ...).
        answers: Logits of the teacher; not used.
        class_axis: Not used.
    """
    with evaluating(model), _Rectified() as rectified:
        model_inputs.call(model, batch)
    if not rectified.codes:
        return -math.inf
    codes = torch.cat(
        [code.flatten(1) for code in rectified.codes if len(code) == model_inputs.count(batch)], dim=1
    ).double()
    kernel = codes @ codes.T + (1 - codes) @ (1 - codes).T
    return float(torch.linalg.slogdet(kernel).logabsdet)


def synflow(model: nn.Module, batch: Batch, answers: Tensor, class_axis: int = LAST) -> float:
    """Return the log of the sum of |w| * dR/d|w| over all weights, R the summed outputs of magnitudes for ones.

    Args:
        model: Candidate; untouched.
        batch: Inputs (N, ...), of which the shape is used, and the first where they are tokens.
        answers: Logits of the teacher; not used.
        class_axis: Not used.
    """
    positive = copy.deepcopy(model).double().eval()
    for tensor in [*positive.parameters(), *(b for b in positive.buffers() if b.is_floating_point())]:
        tensor.data.abs_()
    example = model_inputs.mapped(
        model_inputs.first(batch),
        lambda part: torch.ones_like(part, dtype=torch.float64 if part.is_floating_point() else part.dtype),
    )
    torch.autograd.backward(model_outputs.answers(model_inputs.call(positive, example)).sum())
    flow = sum(float((p.detach() * p.grad).abs().sum()) for p in positive.parameters() if p.grad is not None)
    return math.log(flow) if flow > 0 else -math.inf


def gradient_norm(model: nn.Module, batch: Batch, answers: Tensor, class_axis: int = LAST) -> float:
    """Return the L2 norm of the gradient of the distillation's loss over the batch.

    Args:
        model: Candidate; untouched.
        batch: Inputs (N, ...).
        answers: Logits of the teacher, (N, classes) or (N, classes, L).
        class_axis: Axis of the candidate's outputs along which the classes are.
    """
    learner = copy.deepcopy(model).eval()
    torch.autograd.backward(
        loss.distillation_loss(
            teachers.by_class(model_inputs.call(learner, batch), class_axis), answers, temperature=1.0
        )
    )
    return math.sqrt(sum(float(p.grad.square().sum()) for p in learner.parameters() if p.grad is not None))


def agreement(model: nn.Module, batch: Batch, answers: Tensor, class_axis: int = LAST) -> float:
    """Return the negative divergence from the teacher's answers.

    Args:
        model: Candidate; untouched.
        batch: Inputs (N, ...).
        answers: Logits of the teacher, (N, classes) or (N, classes, L).
        class_axis: Axis of the candidate's outputs along which the classes are.
    """
    return -float(loss.distillation_loss(teachers.logits(model, batch, class_axis), answers, temperature=1.0))


SCORES: Final[Mapping[str, Callable[..., float]]] = {
    "naswot": naswot,
    "synflow": synflow,
    "gradient_norm": gradient_norm,
    "agreement": agreement,
}
"""Scores by name."""


class _Rectified(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record of the active entries of rectifiers, also of those called as functions."""

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
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in self.KINDS:
            self.codes.append(result > 0)
        return result
