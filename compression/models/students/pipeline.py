"""The pipeline that makes a student of a model: a list of steps, each of which returns the student for the next.

    teacher -> PruneToBudget -> Distill -> Quantize

The order is that of J. Kim, S. Chang, N. Kwak, "PQK: Model Compression via Pruning, Quantization, and Knowledge
Distillation", Interspeech 2021. Any other list will do: `standard` returns the one for given settings, which can be
read, reordered and extended before it is passed to `run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from fedpress.compression.models import class_accuracy
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.bundles.writer import WriteBundle
from fedpress.compression.models.class_accuracy import Bias, Judged
from fedpress.compression.models.distillation import data_free, sequence_level
from fedpress.compression.models.distillation.distill import Distill
from fedpress.compression.models.distillation.loss import HIDDEN
from fedpress.compression.models.distillation.settings import Assistants, Distillation, LearningData
from fedpress.compression.models.distillation.teacher_assistants import DistillThroughAssistants
from fedpress.compression.models.inputs import Inputs
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
    """Evaluation of students against the model that they are made from, for reports; no choice depends on it.

    Args:
        model: Global model, evaluated once for all students.
        task: Task whose `correct` judges answers.
        examples: Labeled examples, (N, ...).

    Attributes:
        teacher: Figures of the model itself, the first stage of every student.
    """

    def __init__(self, model: nn.Module, task: Task, examples: Examples) -> None:
        self._task, self._examples = task, examples
        self._answers = class_accuracy.judged(model, task, examples)
        self.teacher = self._stage("teacher", model, self._answers, None)[0]

    def stage(self, name: str, student: nn.Module, mask: Masks | None = None) -> tuple[StageResult, Bias]:
        """Return the figures of a student after a step, and its accuracy by class.

        Args:
            name: Name of the step.
            student: Model that the step returned.
            mask: Masks of its single weights, by parameter name; None: it is dense.
        """
        return self._stage(name, student, class_accuracy.judged(student, self._task, self._examples), mask)

    def _stage(self, name: str, student: nn.Module, answers: Judged, mask: Masks | None) -> tuple[StageResult, Bias]:
        bias = class_accuracy.by_group(self._answers, answers)
        whole = structural.parameters_of(student)
        left = weights.parameters_left(student, mask) if mask else whole
        with evaluating(student):
            latency = sparse_kernels.milliseconds(
                student, model_inputs.first(self._examples.inputs), sparse_kernels.TIMED_SECONDS
            )
        worst = bias.worst
        return StageResult(name, left, 4 * whole, latency, answers.accuracy, worst.group, worst.lost), bias


def run(steps: Sequence[Step], student: Student, materials: Materials, evaluator: StudentEvaluator) -> Student:
    """Return the student after all steps, with their records; equal arguments give equal weights.

    Args:
        steps: Steps in their order.
        student: Student before the first step.
        materials: Models, data and seed.
        evaluator: Evaluation after each step that is recorded.

    Raises:
        BudgetError: A budget cannot be met, or a fraction cannot be removed.
        PruneError: The model cannot be pruned.
        NonFiniteError: The training diverged.
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
    """Raise before the first round the errors that the steps would raise after the last.

    Args:
        steps: Steps, of which the `CheckedStep`s are checked, each on a model of the form that it will be given.
        model: Global model with any weights; untouched.
        task: Task of the model.

    Raises:
        BudgetError, PruneError, UnknownArchitecture, UnsupportedLayer: As of `run`.
    """
    exported = any(isinstance(step, WriteBundle) and step.onnx for step in steps)
    for step in steps:
        if isinstance(step, CheckedStep):
            step.check(model, task)
        if exported:  # the only check of a later step
            model = _after(step, model, task, seed=0)


def makes_form(steps: Sequence[Step]) -> bool:
    """Return whether the steps determine a student's form; otherwise it is that of the model they are given.

    Args:
        steps: Steps of a student.
    """
    return any(isinstance(step, SearchStudent | PruneToBudget | Prune) for step in steps)


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
        budget: Budget; of the kind `removed_fraction`, the model is pruned on the schedule of `pruning`.
        start: Model to prune, without a search.
        search: Search for the best architecture; None: `start` is pruned uniformly.
        pruning: Order of removal, and the schedule.
        distillation: Distillation between pruning steps, and of a search's finalists.
        quantization: Later quantization of the weights, for budgets of bytes.

    Raises:
        ValueError: Single weights are to be removed by sparsegpt, but the budget is of channels.
    """
    if budget.removed_fraction is not None:
        return Prune(budget.removed_fraction, pruning, distillation)
    if pruning.importance == "sparsegpt":
        raise ValueError(
            "importance 'sparsegpt' removes single weights, for a budget of removed_fraction; got one of"
            f" {budget.kind}, for which channels are removed: see 'wanda'"
        )
    if search is not None:
        return SearchStudent(budget, search, distillation, quantization, pruning)
    return PruneToBudget(budget, start, pruning, quantization)


def learning(
    distillation: Distillation = Distillation(), assistants: Assistants | None = None, pruning: Pruning = Pruning()
) -> Step:
    """Return the step that distills the student.

    Args:
        distillation: Loss and training.
        assistants: Teacher assistants; None: none.
        pruning: Order of removal where the assistants are pruned.
    """
    if assistants is None:
        return Distill(distillation)
    return DistillThroughAssistants(partial(initial_student.smaller, pruning), distillation, assistants)


def writing(
    quantization: Quantization = Quantization(), distillation: Distillation = Distillation()
) -> tuple[Step, ...]:
    """Return the steps that quantize the student.

    Args:
        quantization: Quantization, and the epochs of quantization-aware training before it.
        distillation: Distillation in these epochs.
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
    """Return the usual steps: `initial`, `learning`, `writing`, and for a sparse student the timing of its layers.

    >>> [type(step).__name__ for step in standard(Budget(parameters=0.1))]
    ['PruneToBudget', 'Distill', 'Quantize']

    Args:
        budget: Budget of the student.
        start: Model to prune, without a search.
        search: Search for the best architecture; None: `start` is pruned uniformly.
        pruning: Order of removal, and the schedule.
        distillation: Loss and training.
        assistants: Teacher assistants; None: none.
        quantization: Quantization of the weights.
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
) -> tuple[Inputs, Tensor | None]:
    """Return the inputs that a student learns on, (N, ...), and their labels as far as it may see them.

    Args:
        steps: Steps of the student, which determine its size for data-free inputs with `disagreement`.
        model: Global model.
        task: Task that holds out the proxy data.
        data: Additions to the proxy data, or their replacement.
        trained: Trained student for `disagreement`; None: an untrained one of the student's size.
        seed: Seed of all random choices.

    Raises:
        DataFreeError: No inputs can be synthesized from the model.
        ValueError: The proxy data are no sequences that could be continued.
    """
    if data.data_free:
        shape = data_free.shape_of(task.data().validation.inputs)
        opponent = None
        if data.data_free.disagreement:
            opponent = trained if trained is not None else _untrained(steps, model, task, seed)
        return data_free.synthesize(model, shape, data.data_free, student=opponent, seed=seed), None
    proxy = task.data().proxy
    if data.continuations is None:
        return proxy.inputs, proxy.targets if data.labels else None
    written = sequence_level.continued(model, proxy.inputs, data.continuations, seed=seed)
    visible = proxy.targets if data.labels else torch.full_like(proxy.targets, HIDDEN)
    return torch.cat([proxy.inputs, written.inputs]), torch.cat([visible, written.targets])


def _untrained(steps: Sequence[Step], model: nn.Module, task: Task, seed: int) -> nn.Module:
    """Return a model of the student's size; the global model where the steps do not determine it."""
    for step in steps:
        model = _after(step, model, task, seed)
    return model


def _after(step: Step, model: nn.Module, task: Task, seed: int) -> nn.Module:
    """Return a model of the form that it has after a step, as far as that is known before its training."""
    if isinstance(step, SearchStudent):
        return step.uniform.pruned(model, task, seed=seed)
    if isinstance(step, PruneToBudget):
        return step.pruned(model, task, seed=seed)
    return model
