"""How a student is made of a model: a list of steps, each of which hands the student to the next.

    teacher -> PruneToBudget -> Distill -> Quantize

The order is that of J. Kim, S. Chang, N. Kwak, "PQK: Model Compression via Pruning, Quantization, and Knowledge
Distillation", Interspeech 2021. A list may be any other: `standard` writes the one that settings ask for, and what it
returns can be read, reordered and extended before it is given to `run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression.models import class_accuracy
from fedpress.compression.models.class_accuracy import Bias
from fedpress.compression.models.distillation import data_free, sequence_level
from fedpress.compression.models.distillation.distill import Distill
from fedpress.compression.models.distillation.loss import HIDDEN
from fedpress.compression.models.distillation.settings import Assistants, Distillation, LearningData
from fedpress.compression.models.distillation.teacher_assistants import DistillThroughAssistants
from fedpress.compression.models.masks import Masks
from fedpress.compression.models.pruning import sparse_kernels, structural, weights
from fedpress.compression.models.pruning.schedule import Prune
from fedpress.compression.models.pruning.settings import Pruning
from fedpress.compression.models.quantization.quantization_aware import QuantizationAware
from fedpress.compression.models.quantization.quantize import Quantize
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.reproducible import evaluating
from fedpress.compression.models.step import CheckedStep, Materials, StageResult, Step, Student
from fedpress.compression.models.students import initial_student
from fedpress.compression.models.students.initial_student import PruneToBudget, Start
from fedpress.compression.models.students.search import SearchStudent
from fedpress.compression.models.students.settings import Budget, Search
from fedpress.compression.models.task import Examples, Task


class StudentEvaluator:
    """Compares students with the model that they are made of, on the same examples; nothing is chosen by it.

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

    def stage(self, name: str, student: nn.Module, mask: Masks | None = None) -> tuple[StageResult, Bias]:
        """Return what a student is like after a step, and how it answers each class.

        Args:
            name: Of the step.
            student: As the step left it.
            mask: Of single weights that it has; None: all.
        """
        return self._stage(name, student, class_accuracy.judged(student, self._task, self._examples), mask)

    def _stage(
        self, name: str, student: nn.Module, right: NDArray[np.bool_], mask: Masks | None
    ) -> tuple[StageResult, Bias]:
        bias = class_accuracy.by_group(self._right, right, self._examples.targets.numpy())
        whole = structural.parameters_of(student)
        left = weights.parameters_left(student, mask) if mask else whole
        with evaluating(student):
            latency = sparse_kernels.milliseconds(student, self._examples.inputs[:1], sparse_kernels.TIMED_SECONDS)
        worst = bias.worst
        return StageResult(name, left, 4 * whole, latency, float(right.mean()), worst.group, worst.lost), bias


def run(steps: Sequence[Step], student: Student, materials: Materials, evaluator: StudentEvaluator) -> Student:
    """Return the student after all steps, and what each did to it; the same arguments give the same weights.

    Args:
        steps: In their order.
        student: What the first one begins with; its stages, if it has none, begin with the teacher.
        materials: What it is made with.
        evaluator: Judges it after each step that names itself.

    Raises:
        BudgetError: A budget cannot be met, or so much cannot be removed.
        PruneError: The model cannot be pruned.
        NonFiniteError: The student diverged.
        TeacherError, UnknownArchitecture, UnsupportedLayer, ValueError: Settings do not fit the task.
    """
    student = _recorded(student, evaluator)
    for step in steps:
        student = _recorded(step(student, materials), evaluator)
    return student


def _recorded(student: Student, evaluator: StudentEvaluator) -> Student:
    stages = student.stages or (evaluator.teacher,)
    if not student.step:
        return replace(student, stages=stages)
    stage, bias = evaluator.stage(student.step, student.model, student.masks)
    return replace(student, stages=(*stages, stage), bias=bias, step="")


def check(steps: Sequence[Step], model: nn.Module, task: Task) -> None:
    """Find out before the first round what the steps would raise after the last.

    Args:
        steps: Those that are `CheckedStep`s are asked.
        model: The global model, with any weights; untouched.
        task: Its task.

    Raises:
        BudgetError, PruneError, UnknownArchitecture, UnsupportedLayer: As of `run`.
    """
    for step in steps:
        if isinstance(step, CheckedStep):
            step.check(model, task)


def initial(
    budget: Budget,
    start: Start = Start(),
    search: Search | None = None,
    pruning: Pruning = Pruning(),
    distillation: Distillation = Distillation(),
    quantization: Quantization = Quantization(),
) -> Step:
    """Return the step that makes a model small enough for a budget.

    Args:
        budget: Of `removed_fraction`: the model is pruned as `pruning` says; of another kind: until it is within it.
        start: Which model is pruned to it.
        search: How the best one within it is searched for; None: `start` is pruned alike in every layer.
        pruning: What goes first, and in which steps.
        distillation: How models learn on the way.
        quantization: How the student's weights will be written.
    """
    if budget.removed_fraction is not None:
        return Prune(budget.removed_fraction, pruning, distillation)
    if search is not None:
        return SearchStudent(budget, search, distillation, quantization)
    return PruneToBudget(budget, start, pruning, quantization)


def learning(
    distillation: Distillation = Distillation(), assistants: Assistants | None = None, pruning: Pruning = Pruning()
) -> Step:
    """Return the step in which the student learns.

    Args:
        distillation: How.
        assistants: When there are models between teacher and student; None: never.
        pruning: What goes first where these are pruned.
    """
    if assistants is None:
        return Distill(distillation)
    return DistillThroughAssistants(partial(initial_student.smaller, pruning), distillation, assistants)


def writing(
    quantization: Quantization = Quantization(), distillation: Distillation = Distillation()
) -> tuple[Step, ...]:
    """Return the steps after which the student's weights are small integers.

    Args:
        quantization: How they are written, and for how many epochs the student learns so before.
        distillation: How it learns then.
    """
    aware = (QuantizationAware(quantization, distillation),) if quantization.qat_epochs else ()
    return (*aware, Quantize(quantization))


def standard(
    budget: Budget,
    *,
    start: Start = Start(),
    search: Search | None = None,
    pruning: Pruning = Pruning(),
    distillation: Distillation = Distillation(),
    assistants: Assistants | None = None,
    quantization: Quantization = Quantization(),
) -> tuple[Step, ...]:
    """Return the usual steps: `initial`, `learning`, `writing`, and the layers of a sparse student timed.

    >>> [type(step).__name__ for step in standard(Budget(parameters=0.1))]
    ['PruneToBudget', 'Distill', 'Quantize']

    Args:
        budget: What the student may cost.
        start, search, pruning, distillation, assistants, quantization: As for those.
    """
    single_weights = budget.removed_fraction is not None and pruning.granularity != "channels"
    return (
        initial(budget, start, search, pruning, distillation, quantization),
        learning(distillation, assistants, pruning),
        *writing(quantization, distillation),
        *((sparse_kernels.time_layers,) if single_weights or quantization.sparsity else ()),
    )


def inputs_for(
    steps: Sequence[Step],
    model: nn.Module,
    task: Task,
    data: LearningData = LearningData(),
    *,
    trained: nn.Module | None = None,
    seed: int,
) -> tuple[Tensor, Tensor | None]:
    """Return what a student learns on: inputs (N, ...), and their labels as far as it may see them.

    Args:
        steps: Of the student, for inputs to be made on which one of its size differs from the model.
        model: The global model.
        task: Whose proxy data these are.
        data: What else, or what in their place.
        trained: A student that has learned already, in place of one of its size.
        seed: Of all that is drawn.

    Raises:
        DataFreeError: No inputs can be made from the model.
        ValueError: The proxy data are no sequences that could be continued.
    """
    if data.data_free:
        shape = tuple(task.data().validation.inputs.shape[1:])
        against = None
        if data.data_free.disagreement:
            against = trained if trained is not None else _of_its_size(steps, model, task, seed)
        return data_free.synthesize(model, shape, data.data_free, student=against, seed=seed), None
    proxy = task.data().proxy
    if data.continuations is None:
        return proxy.inputs, proxy.targets if data.labels else None
    written = sequence_level.continued(model, proxy.inputs, data.continuations, seed=seed)
    visible = proxy.targets if data.labels else torch.full_like(proxy.targets, HIDDEN)
    return torch.cat([proxy.inputs, written.inputs]), torch.cat([visible, written.targets])


def _of_its_size(steps: Sequence[Step], model: nn.Module, task: Task, seed: int) -> nn.Module:
    for step in steps:
        if isinstance(step, SearchStudent):
            return step.alike.pruned(model, task, seed=seed)
        if isinstance(step, PruneToBudget):
            return step.pruned(model, task, seed=seed)
    return model
