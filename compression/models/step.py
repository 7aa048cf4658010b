"""Interface of the steps that make a student, and the records that they leave.

    Step = (student, materials) -> student

A student is made by a list of steps (`students.pipeline`): prune, distill, quantize, or any other of this form. Each
step is defined in the file of its subject. This module holds what they share and imports no torch, because the records
are also part of a run's results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import pydantic.dataclasses

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedpress.compression.models.class_accuracy import Bias
    from fedpress.compression.models.inputs import Batch, Inputs
    from fedpress.compression.models.masks import Masks
    from fedpress.compression.models.task import Task


@pydantic.dataclasses.dataclass(frozen=True)
class StageResult:
    """Figures of a student after one of the steps.

    Attributes:
        name: Name of the step, such as `pruned`, `distilled` or `quantized`; `teacher` for the model that it is made
            from.
        parameters: Number of parameters, without those outside its masks.
        size_bytes: Size of its weights as float32, or of its file.
        latency_ms: Measured latency of one example on one thread of this CPU, never the same twice.
        accuracy: Accuracy on the evaluator's examples, a fraction.
        worst_class: Class with the largest loss of accuracy against the teacher; -1: answers are of no class.
        worst_lost: That loss, a fraction.
    """

    name: str
    parameters: int
    size_bytes: int
    latency_ms: float
    accuracy: float
    worst_class: int
    worst_lost: float


@pydantic.dataclasses.dataclass(frozen=True)
class PruningStep:
    """Figures of one step of a pruning schedule; the first is the model before anything was removed.

    Attributes:
        kept: Fraction of the teacher's parameters that is left.
        parameters: Number of parameters left.
        accuracy: Accuracy on validation data after training, a fraction.
        taken: Whether the step was kept; otherwise it was undone.
    """

    kept: float
    parameters: int
    accuracy: float
    taken: bool


@pydantic.dataclasses.dataclass(frozen=True)
class CandidateResult:
    """Figures of one architecture that a search evaluated.

    Attributes:
        start: Name of the model that it was pruned from, such as `search.PRUNED`.
        widths: Channels or heads left in each prunable layer, by the layer's name.
        parameters: Number of parameters.
        cost: Cost in the budget's unit.
        score: Score without training, comparable within one start only.
        epochs: Epochs of its longest distillation in the search; 0: it was no finalist.
        accuracy: Accuracy on validation data after that distillation, a fraction; None: it was no finalist.
        loss: Loss on validation data after it; None: it was no finalist.
        uniform: Whether all layers keep the same fraction.
        chosen: Whether the search chose it.
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


@pydantic.dataclasses.dataclass(frozen=True)
class LayerTiming:
    """Latency of a layer of a sparse student, executed dense and sparse.

    Attributes:
        layer: Name of the layer.
        density: Fraction of its weights that are not zero.
        dense_ms: Milliseconds of dense execution, the median of many runs on one thread.
        sparse_ms: Milliseconds of sparse execution, likewise.
        chosen: The faster one, "dense" or "sparse".
    """

    layer: str
    density: float
    dense_ms: float
    sparse_ms: float
    chosen: str


@runtime_checkable
class Teacher(Protocol):
    """A model, or several, whose logits a student learns.

    Law: `answers` has no side effects, and the logits of an input do not depend on the other inputs of the batch.
    """

    def answers(self, inputs: Inputs) -> Tensor:
        """Return the logits of inputs (N, ...): float32, (N, classes), or (N, classes, L) for sequences."""


@dataclass(frozen=True)
class Student:
    """A student in the making: its model after the last step, and the records of all steps.

    Attributes:
        model: The model after the last step.
        architecture: Name of one of the task's student architectures; None: the task's own model, cut down.
        masks: Masks of single weights, by parameter name; None: the model is dense.
        tensors: Weights by name, as `quantize.quantize` returns them; None: they are not quantized.
        stages: Figures after each step, those of the teacher first.
        bias: Accuracy by class of the teacher and of the last stage; None: no step was recorded.
        candidates: Architectures that a search evaluated, the chosen one first.
        curve: Steps of its pruning schedule.
        timings: Latencies of a sparse student's layers.
        bundle: Download file; None: it is not written.
        step: Name under which the last step is recorded; "": it is not recorded.
    """

    model: nn.Module
    architecture: str | None = None
    masks: Masks | None = None
    tensors: dict[str, Any] | None = None
    stages: tuple[StageResult, ...] = ()
    bias: Bias | None = None
    candidates: tuple[CandidateResult, ...] = ()
    curve: tuple[PruningStep, ...] = ()
    timings: tuple[LayerTiming, ...] = ()
    bundle: bytes | None = None
    step: str = ""

    def after(self, step: str, model: nn.Module) -> Student:
        """Return the student after a step.

        Args:
            step: Name under which its figures are recorded, such as "pruned"; "": they are not.
            model: Model that the step returned.
        """
        return replace(self, step=step, model=model)


class SearchProgress(NamedTuple):
    """Progress of a search: `done` of `total` units of work, and a description of the current one."""

    done: int
    total: int
    text: str


@dataclass(frozen=True)
class Materials:
    """What all steps are given besides the student: models, data and the seed. No step changes it.

    Attributes:
        model: Global model that the student is made from.
        task: Task of the model, whose validation data decide every choice.
        inputs: Inputs that the student learns on, (N, ...).
        targets: Labels of these inputs, int64, as far as the student may see them; None: it sees none.
        teacher: Teacher on these inputs: the global model, or an ensemble of client models.
        seed: Seed of all random choices.
        tier: Name of the class of devices that the student is for.
        version: Version of the global model.
        early: Global model before training, or early in it, for lottery tickets to rewind to; None: unknown.
        progress: Called with the progress of a search.
    """

    model: nn.Module
    task: Task
    inputs: Inputs
    targets: Tensor | None
    teacher: Teacher
    seed: int
    tier: str = "student"
    version: int = 0
    early: nn.Module | None = None
    progress: Callable[[SearchProgress], None] = field(default=lambda _: None)

    @property
    def example(self) -> Batch:
        """Batch of one input, from validation data because a task may hold out no proxy data."""
        from fedpress.compression.models import inputs as model_inputs  # imports torch, as this module does not

        return model_inputs.first(self.task.data().validation.inputs)

    @cached_property
    def class_axis(self) -> int:
        """Axis of the models' outputs along which the task looks for the class; the last where it looks for none."""
        from fedpress.compression.models.task import class_axis_of  # imports torch, as this module does not

        axis = class_axis_of(self.model, self.task)
        return -1 if axis is None else axis


class Step(Protocol):
    """One step in the making of a student.

    Law: the given student, its model and the materials are untouched, and equal arguments give equal students; a step
    that trains runs on the CPU and draws from `materials.seed`.

    >>> from torch import nn
    >>> def rounded(student, materials):
    ...     model = nn.Linear(1, 1)
    ...     model.load_state_dict({name: tensor.round() for name, tensor in student.model.state_dict().items()})
    ...     return student.after("rounded", model)
    >>> rounded(Student(nn.Linear(1, 1)), None).step
    'rounded'
    """

    def __call__(self, student: Student, materials: Materials, /) -> Student:
        """Return the student after this step.

        Args:
            student: Student after the steps before.
            materials: Models, data and seed.
        """


@runtime_checkable
class CheckedStep(Protocol):
    """A step that can report before the first round whether it will be possible."""

    def check(self, model: nn.Module, task: Task) -> None:
        """Raise the error that the step would raise for a trained model of this architecture.

        Args:
            model: Global model with any weights; untouched.
            task: Task of the model.
        """
