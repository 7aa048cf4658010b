"""How a student is made of a model: prune, distill, quantize; and what each of these steps does to it.

    teacher -> pruned -> distilled -> quantized

The order is that of J. Kim, S. Chang, N. Kwak, "PQK: Model Compression via Pruning, Quantization, and Knowledge
Distillation", Interspeech 2021. What the steps can be is in their own files; here they follow one another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression import seeds
from fedpress.compression.models import class_accuracy
from fedpress.compression.models.class_accuracy import Bias
from fedpress.compression.models.distillation import data_free, distill, teacher_assistants, teachers
from fedpress.compression.models.distillation.data_free import DataFree
from fedpress.compression.models.distillation.sequence_level import Continuations, continued
from fedpress.compression.models.distillation.teacher_assistants import Assistants
from fedpress.compression.models.distillation.teachers import Teacher
from fedpress.compression.models.pruning import (
    fine_tuning,
    importance,
    schedule,
    sparse_kernels,
    structural,
    weights,
)
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.pruning.schedule import Pruning
from fedpress.compression.models.pruning.sparse_kernels import Timing
from fedpress.compression.models.pruning.weights import Masks
from fedpress.compression.models.quantization import quantize
from fedpress.compression.models.quantization.quantized_tensor import Tensors
from fedpress.compression.models.reproducible import evaluating
from fedpress.compression.models.students import search
from fedpress.compression.models.students.budgets import Budget
from fedpress.compression.models.students.initial_student import Start, start_of
from fedpress.compression.models.students.search import Candidate, Search
from fedpress.compression.models.task import Examples, Task

TIMED_SECONDS = 0.05
"""For how long a model's latency is measured."""


@dataclass(frozen=True)
class StudentPipeline:
    """What is done to make a student, for every tier alike.

    Attributes:
        pruning: What goes first. Where a tier has a budget, its importance and ranking count; where it has a ratio,
            all of it.
        distillation: How the student learns.
        assistants: When there are models between teacher and student; None: never.
        quantization: How its weights are written.
        labels: Whether it may see the labels of the proxy data; the distillation may say of how many.
        made_up: How inputs are made up from the model, in place of proxy data; None: they are not.
        continuations: How the model goes on from proxy sequences, for the student to learn that too; None: it does not.
    """

    pruning: Pruning = Pruning()
    distillation: distill.Distillation = distill.DEFAULTS
    assistants: Assistants | None = None
    quantization: quantize.Quantization = quantize.DEFAULTS
    labels: bool = False
    made_up: DataFree | None = None
    continuations: Continuations | None = None

    def __post_init__(self) -> None:
        if self.made_up and (self.labels or self.continuations):
            raise ValueError("made-up inputs have no labels, and are no sequences to go on from; leave one of them out")


DEFAULTS = StudentPipeline()


class StudentSpec(NamedTuple):
    """Which student it is to be.

    Attributes:
        budget: What it may cost; None: `pruning` says how much is removed.
        pruning: As for a teacher by itself, with its ratio; None: the budget says how much is removed.
        start: What is pruned to the budget.
        search: How the best within the budget is looked for; None: `start` is pruned alike in every layer.
    """

    budget: Budget | None
    pruning: Pruning | None = None
    start: Start = Start()
    search: Search | None = None


class Stage(NamedTuple):
    """A student after one of the steps.

    Attributes:
        name: `teacher`, `pruned`, `distilled` or `quantized`.
        parameters: That are not zero by a mask.
        size_bytes: As float32, or of its file.
        latency_ms: Of one example on this CPU, one thread: measured, so never the same twice.
        accuracy: On the examples that it is judged on, a fraction.
        worst_class: That it loses most on, against the teacher.
        worst_lost: How much, a fraction.
    """

    name: str
    parameters: int
    size_bytes: int
    latency_ms: float
    accuracy: float
    worst_class: int
    worst_lost: float


class StudentArtifact(NamedTuple):
    """A student, and how it came about.

    Attributes:
        student: Before quantization.
        tensors: Its weights, quantized.
        quantized: The student with them.
        architecture: Of the task's student architectures; None: the task's own model.
        stages: After each step.
        bias: Accuracy by class of teacher and quantized student.
        candidates: What was looked at for it, if it was searched for, the chosen one first.
        curve: The way of the pruning, where a ratio was asked for.
        timings: Of the layers of a sparse student: what sparse execution takes, and dense.
    """

    student: nn.Module
    tensors: Tensors
    quantized: nn.Module
    architecture: str | None
    stages: tuple[Stage, ...]
    bias: Bias
    candidates: tuple[Candidate, ...] = ()
    curve: tuple[schedule.Step, ...] = ()
    timings: tuple[Timing, ...] = ()


class Judge:
    """Compares students with the model that they are made of, on the same examples.

    Args:
        model: Asked once, whatever the number of students.
        task: Whose rule says which answers are right.
        examples: What accuracies are reported on.

    Attributes:
        teacher: The model itself, as the first stage.
    """

    def __init__(self, model: nn.Module, task: Task, examples: Examples) -> None:
        self._task, self._examples = task, examples
        self._right = class_accuracy.judged(model, task, examples)
        self.teacher = self._stage("teacher", model, self._right, None)[0]

    def stage(self, name: str, student: nn.Module, mask: Masks | None = None) -> tuple[Stage, Bias]:
        """Return what a student is like after a step, and how it answers each class."""
        return self._stage(name, student, class_accuracy.judged(student, self._task, self._examples), mask)

    def _stage(self, name: str, student: nn.Module, right: NDArray[np.bool_], mask: Masks | None) -> tuple[Stage, Bias]:
        bias = class_accuracy.by_group(self._right, right, self._examples.targets.numpy())
        whole = structural.parameters_of(student)
        left = weights.parameters_left(student, mask) if mask else whole
        with evaluating(student):
            latency = sparse_kernels.milliseconds(student, self._examples.inputs[:1], TIMED_SECONDS)
        worst = bias.worst
        return Stage(name, left, 4 * whole, latency, float(right.mean()), worst.group, worst.lost), bias


class _Start(NamedTuple):
    model: nn.Module
    masks: Masks | None = None
    architecture: str | None = None
    candidates: tuple[Candidate, ...] = ()
    curve: tuple[schedule.Step, ...] = ()


def make(
    model: nn.Module,
    task: Task,
    wanted: StudentSpec,
    chain: StudentPipeline = DEFAULTS,
    *,
    teacher: Teacher | None = None,
    early: nn.Module | None = None,
    judge: Judge,
    seed: int,
    progress: Callable[[search.Step], None] = lambda _: None,
) -> StudentArtifact:
    """Make a student; the same arguments give the same weights.

    Args:
        model: The model that it is made of; untouched.
        task: Whose proxy data it learns on, and whose validation data choose what is chosen.
        wanted: Which student it is to be.
        chain: What is done.
        teacher: Who answers; None: the model itself.
        early: The model before it was trained, or early on, which a lottery ticket is rewound to.
        judge: Of the model, for what is reported; nothing is chosen by it.
        seed: Of all that is drawn.
        progress: Told how far a search has come.

    Raises:
        BudgetError: The budget or the ratio cannot be met.
        PruneError: The model cannot be pruned.
        NonFiniteError: The student diverged.
        TeacherError, UnknownArchitecture, UnsupportedLayer, DataFreeError, ValueError: Settings do not fit the task.
    """
    example = task.data().validation.inputs[:1]
    made_of = teacher or teachers.of(model)
    inputs, targets = _material(model, lambda: _plain(model, task, wanted, seed), task, chain, seed)

    def criterion(pruned: nn.Module) -> Criterion:
        gradients = None
        if chain.pruning.importance == "taylor":
            gradients = importance.gradients(pruned, task, fine_tuning.answered(model, inputs))
        return Criterion(chain.pruning.importance, chain.pruning.ranking, gradients, seeds.derive("random", seed))

    begun = _begin(model, task, wanted, chain, made_of, inputs, targets, criterion, early, seed, progress)

    def learn(student: nn.Module) -> nn.Module:
        if chain.assistants is None:
            return distill.distill(made_of, student, inputs, chain.distillation, targets=targets, seed=seed)
        return teacher_assistants.distill_through(
            made_of, student, inputs, chain.distillation, chain.assistants, targets=targets, seed=seed,
            parameters=structural.parameters_of(model),
            make=lambda most: structural.prune_to(model, example, most, criterion=criterion(model)),
        )  # fmt: skip

    student = weights.train_within(begun.model, begun.masks, learn) if begun.masks else learn(begun.model)
    tensors = _quantized(student, chain, made_of, inputs, targets, seed)
    rounded = quantize.applied(student, tensors)
    stages = [judge.teacher]
    for name, version in (("pruned", begun.model), ("distilled", student), ("quantized", rounded)):
        stage, bias = judge.stage(name, version, begun.masks)
        stages.append(stage)
    sparse = begun.masks is not None or chain.quantization.sparsity > 0
    timings = sparse_kernels.faster(rounded, example, TIMED_SECONDS)[1] if sparse else []
    return StudentArtifact(
        student,
        tensors,
        rounded,
        begun.architecture,
        tuple(stages),
        bias,
        begun.candidates,
        begun.curve,
        tuple(timings),
    )


def finished(
    model: nn.Module,
    task: Task,
    student: nn.Module,
    chain: StudentPipeline,
    *,
    architecture: str | None,
    judge: Judge,
    seed: int,
) -> StudentArtifact:
    """Quantize a student that has learned already, such as one that its tier's clients have trained.

    Args:
        model: What it is compared with.
        task, chain, judge, seed: As for `make`.
        student: As it is to be served, but for its quantization.
        architecture: Of the task's student architectures; None: the task's own model.
    """
    inputs, targets = _material(model, lambda: student, task, chain, seed)
    tensors = _quantized(student, chain, teachers.of(model), inputs, targets, seed)
    rounded = quantize.applied(student, tensors)
    trained, _ = judge.stage("trained", student)
    last, bias = judge.stage("quantized", rounded)
    return StudentArtifact(student, tensors, rounded, architecture, (judge.teacher, trained, last), bias)


def _begin(
    model: nn.Module,
    task: Task,
    wanted: StudentSpec,
    chain: StudentPipeline,
    teacher: Teacher,
    inputs: Tensor,
    targets: Tensor | None,
    criterion: Callable[[nn.Module], Criterion],
    early: nn.Module | None,
    seed: int,
    progress: Callable[[search.Step], None],
) -> _Start:
    """Return the student as its distillation begins."""
    if wanted.pruning is not None:
        proxy = Examples(inputs, targets) if targets is not None else fine_tuning.answered(model, inputs)
        way = fine_tuning.distilling(model, inputs, chain.distillation, targets)
        if wanted.pruning.penalty != "none":
            way = fine_tuning.training(task, proxy)
        found = schedule.prune(
            model,
            wanted.pruning,
            task=task,
            examples=proxy,
            validation=task.data().validation,
            fine_tune=way,
            rewind=early if wanted.pruning.schedule == "lottery" else None,
            seed=seed,
        )
        return _Start(found.model, found.masks, curve=found.steps)
    assert wanted.budget is not None
    if wanted.search is not None:
        best = search.search(
            model, task, wanted.budget, wanted.search, chain.distillation, teacher=teacher, inputs=inputs,
            targets=targets, seed=seed, progress=progress,
        )  # fmt: skip
        return _Start(best.student, None, best.architecture, best.candidates)
    example = task.data().validation.inputs[:1]
    started = start_of(task, model, example, wanted.budget, wanted.start, criterion, seed=seed)
    return _Start(started, None, wanted.start.architecture)


def _plain(model: nn.Module, task: Task, wanted: StudentSpec, seed: int) -> nn.Module:
    """A student of the wanted size, for inputs to be made up on which it differs from the model."""
    if wanted.budget is None:
        return model
    return start_of(task, model, task.data().validation.inputs[:1], wanted.budget, wanted.start, seed=seed)


def _material(
    model: nn.Module, student: Callable[[], nn.Module], task: Task, chain: StudentPipeline, seed: int
) -> tuple[Tensor, Tensor | None]:
    """What the student learns on: inputs, and their labels as far as it may see them."""
    if chain.made_up:
        shape = tuple(task.data().validation.inputs.shape[1:])
        own = student() if chain.made_up.disagreement else None
        return data_free.synthesize(model, shape, chain.made_up, student=own, seed=seed), None
    proxy = task.data().proxy
    if chain.continuations is None:
        return proxy.inputs, proxy.targets if chain.labels else None
    written = continued(model, proxy.inputs, chain.continuations, seed=seed)
    given = proxy.targets if chain.labels else torch.full_like(proxy.targets, distill.HIDDEN)
    return torch.cat([proxy.inputs, written.inputs]), torch.cat([given, written.targets])


def _quantized(
    student: nn.Module, chain: StudentPipeline, teacher: Teacher, inputs: Tensor, targets: Tensor | None, seed: int
) -> Tensors:
    settings = chain.quantization
    if settings.aware:
        own = seeds.derive("aware", seed)
        length = replace(chain.distillation, epochs=settings.aware)
        student = distill.distill(
            teacher, quantize.prepare(student, settings), inputs, length, targets=targets, seed=own
        )
    return quantize.quantize(student, settings, inputs, seed=seed)
