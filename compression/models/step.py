"""A student on its way: what passes from one step of its making to the next, and what is written down about each.

    Step = (student, materials) -> student

A student is made by a list of steps (`students.pipeline`): prune, distill, quantize, and whatever else has this form.
Every step stands in the file of its subject. Here is only what they have in common, and no torch is imported: the
figures are also those of a run's results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import pydantic.dataclasses

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedpress.compression.models.class_accuracy import Bias
    from fedpress.compression.models.masks import Masks
    from fedpress.compression.models.task import Task


@pydantic.dataclasses.dataclass(frozen=True)
class StageResult:
    """A student after one of the steps.

    Attributes:
        name: Of the step, such as `pruned`, `distilled` or `quantized`; `teacher` for what it is made of.
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


@pydantic.dataclasses.dataclass(frozen=True)
class PruningStep:
    """One step of a pruning whose accuracy was watched; the first is the model before anything was removed.

    Attributes:
        kept: Part of the teacher's parameters that are left.
        parameters: How many these are.
        accuracy: On validation data after training; a fraction.
        taken: Whether the step was kept; if not, it was undone.
    """

    kept: float
    parameters: int
    accuracy: float
    taken: bool


@pydantic.dataclasses.dataclass(frozen=True)
class CandidateResult:
    """One architecture that a search looked at.

    Attributes:
        start: The model that it was pruned from: `search.PRUNED`, or another start's name.
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


@pydantic.dataclasses.dataclass(frozen=True)
class LayerTiming:
    """What a layer of a sparse student took for the batch given.

    Attributes:
        layer: Its name.
        density: The part of its weights that are not zero.
        dense_ms, sparse_ms: Milliseconds, the median of many runs on one thread.
        chosen: "dense" or "sparse".
    """

    layer: str
    density: float
    dense_ms: float
    sparse_ms: float
    chosen: str


@runtime_checkable
class Teacher(Protocol):
    """Answers inputs with logits.

    Law: `answers` changes nothing, and its answer to an input does not depend on the others that are asked with it.
    """

    def answers(self, inputs: Tensor) -> Tensor:
        """Return the logits of inputs (N, ...): float32, (N, classes), or (N, classes, L) for sequences."""


@dataclass(frozen=True)
class Student:
    """A model on its way to be a student, and what was done to it so far.

    Attributes:
        model: As it is now.
        architecture: Of the task's student architectures; None: the task's own model, cut down.
        masks: Of single weights that stay zero, by name; None: it has none.
        tensors: Its weights by name, as `quantize.quantize` gives them; None: they are not quantized.
        stages: After each step, the teacher first.
        bias: Accuracy by class of the teacher and of the last stage; None: no step was recorded.
        candidates: What was looked at for it, if it was searched for, the chosen one first.
        curve: The way of its pruning, where a part of the parameters was to be removed.
        timings: Of its layers, if it is sparse: what sparse execution takes, and dense.
        bundle: The download file; None: it is not written.
        step: What the last step calls what it did; "": nothing that is to be recorded.
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
            step: What it did, such as "pruned", under which its figures are recorded; "": they are not.
            model: As the step left it.
        """
        return replace(self, step=step, model=model)


class SearchProgress(NamedTuple):
    """How far a long step has come: `done` of `total` units of work, and what comes now."""

    done: int
    total: int
    text: str


@dataclass(frozen=True)
class Materials:
    """What a student is made with; the same for all steps, and none of them changes it.

    Attributes:
        model: The global model, which the student is made of.
        task: Whose validation data choose what is chosen.
        inputs: What the student learns on, (N, ...).
        targets: Labels of that, int64, as far as it may see them; None: it may not.
        teacher: Who answers the inputs: the model itself, or an ensemble of client models.
        seed: Of all that is drawn.
        tier: The class of devices that it is for.
        version: Of the global model.
        early: The model before it was trained, or early on, which a lottery ticket is rewound to; None: not known.
        progress: Told how far a search has come.
    """

    model: nn.Module
    task: Task
    inputs: Tensor
    targets: Tensor | None
    teacher: Teacher
    seed: int
    tier: str = "student"
    version: int = 0
    early: nn.Module | None = None
    progress: Callable[[SearchProgress], None] = field(default=lambda _: None)

    @property
    def example(self) -> Tensor:
        """A batch of one input; of validation data, since there may be no proxy data."""
        return self.task.data().validation.inputs[:1]


class Step(Protocol):
    """One thing that is done to a student.

    Law: the student that is given, its model and the materials are untouched, and the same arguments give the same
    student; a step that trains runs on the CPU and seeds itself from `materials.seed`.

    >>> from torch import nn
    >>> def rounded(student, materials):
    ...     model = nn.Linear(1, 1)
    ...     model.load_state_dict({name: tensor.round() for name, tensor in student.model.state_dict().items()})
    ...     return student.after("rounded", model)
    >>> rounded(Student(nn.Linear(1, 1)), None).step
    'rounded'
    """

    def __call__(self, student: Student, materials: Materials, /) -> Student:
        """Return the student after this step."""


@runtime_checkable
class CheckedStep(Protocol):
    """A step that can tell before the first round whether it will be possible."""

    def check(self, model: nn.Module, task: Task) -> None:
        """Raise what the step will raise for a trained model of this architecture.

        Args:
            model: The global model, with any weights; untouched.
            task: Its task.
        """
