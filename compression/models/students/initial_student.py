"""Initial students: the pruned teacher, optionally with fewer blocks, or a pruned model of another architecture.

The pruned teacher keeps its remaining weights, also where blocks are dropped (`depth`); another architecture is fresh,
but for what it inherits (`inherit`). Blocks go first, then the rest is pruned until the budget is met.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from fedpress.compression import seeds
from fedpress.compression.errors import FedpressError
from fedpress.compression.models import inputs
from fedpress.compression.models.inputs import Batch, Inputs
from fedpress.compression.models.pruning import fine_tuning, importance, structural, token_rows
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.pruning.settings import LayerOrder, Pruning
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.step import Materials, Student
from fedpress.compression.models.students import budgets, depth, inheritance
from fedpress.compression.models.students.settings import Budget, Inherit
from fedpress.compression.models.task import Task


class UnknownArchitecture(FedpressError, ValueError):
    """The task has no student architecture of this name."""


@dataclass(frozen=True)
class Start:
    """Model that is pruned to the budget, uniformly over its layers.

    Attributes:
        architecture: One of the task's student architectures, with fresh weights; None: the teacher.
        layers: Blocks kept of each stack, a number or a fraction, as for `depth.drop`; None: all.
        inherit: What another architecture takes over from the teacher, as for `inheritance.inherit`; None: nothing.
    """

    architecture: str | None = None
    layers: int | float | None = None
    inherit: Inherit | None = None

    def __post_init__(self) -> None:
        if self.layers is not None and not (self.layers >= 1 if isinstance(self.layers, int) else 0 < self.layers <= 1):
            raise ValueError(
                f"layers is {self.layers}, expected a number of blocks >= 1 or a fraction of them, in (0, 1]"
            )


@dataclass(frozen=True)
class PruneToBudget:
    """Step: prune a model to its largest version within the budget.

    Attributes:
        budget: Budget of a kind other than `removed_fraction`.
        start: Model to prune.
        pruning: Order of removal, of which importance, ranking and ignored layers are used.
        quantization: For `bundle_bytes`: quantization of the weights.
    """

    budget: Budget
    start: Start = Start()
    pruning: Pruning = Pruning()
    quantization: Quantization = Quantization()

    def check(self, model: nn.Module, task: Task) -> None:
        """Check that the budget can be met, with the errors of `start_of`.

        Args:
            model: Global model with any weights; untouched.
            task: Task of the model.
        """
        self.pruned(model, task, seed=0)

    def pruned(self, model: nn.Module, task: Task, *, seed: int) -> nn.Module:
        """Return a model within the budget, by the default order of removal.

        Args:
            model: Global model; untouched.
            task: Task of the model.
            seed: Seed of fresh weights.
        """
        data = task.data()
        return start_of(
            task,
            model,
            inputs.first(data.validation.inputs),
            self.budget,
            self.start,
            lambda _: importance.named(self.pruning),
            self.quantization,
            seed=seed,
            narrow=lambda start: token_rows.with_used_rows(
                self.pruning, start, data.proxy.inputs, data.validation.inputs
            ),
        )

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the pruned student, not yet distilled.

        Args:
            student: Student whose model is the teacher.
            materials: Models, data and seed.
        """
        model = start_of(
            materials.task,
            student.model,
            materials.example,
            self.budget,
            self.start,
            lambda pruned: criterion_of(self.pruning, pruned, materials),
            self.quantization,
            calibration=materials.inputs,
            layer_order=self.pruning.layer_order,
            seed=materials.seed,
            narrow=lambda start: token_rows.with_used_rows(
                self.pruning, start, materials.inputs, materials.task.data().validation.inputs
            ),
        )
        return replace(student.after("pruned", model), architecture=self.start.architecture)


def criterion_of(pruning: Pruning, model: nn.Module, materials: Materials) -> Criterion:
    """Return the order of removal for a model.

    Args:
        pruning: Importance, ranking and ignored layers.
        model: Model whose gradients are taken, for `taylor`.
        materials: Task, data and teacher for these gradients.
    """
    gradients = None
    if pruning.importance == "taylor":
        proxy = fine_tuning.answered(materials.model, materials.inputs, materials.class_axis)
        gradients = importance.gradients(model, materials.task, proxy)
    norms = importance.norms(model, materials.inputs) if pruning.importance == "wanda" else None
    return importance.of_settings(pruning, gradients, seeds.derive("random", materials.seed), norms)


def smaller(pruning: Pruning, materials: Materials, parameters: int) -> nn.Module:
    """Return the global model pruned to a number of parameters, from which an assistant is trained.

    Args:
        pruning: Order of removal, of which importance and ranking are used.
        materials: Global model and data.
        parameters: Largest number of parameters.

    Raises:
        BudgetError, PruneError: As for `structural.prune_to`.
    """
    criterion = criterion_of(pruning, materials.model, materials)
    return structural.prune_to(materials.model, materials.example, parameters, criterion=criterion)


def fresh(task: Task, architecture: str, *, seed: int) -> nn.Module:
    """Return a fresh model of one of the task's student architectures.

    Args:
        task: Task that defines them.
        architecture: Name of the architecture.
        seed: Seed of its weights.

    Raises:
        UnknownArchitecture: The task has no student architecture of this name.
    """
    known = task.students()
    if architecture not in known:
        raise UnknownArchitecture(
            f"task {task.name!r} has no student {architecture!r}; it has {', '.join(known) or 'none'}"
        )
    with reproducible(seed):
        return known[architecture]()


def start_of(
    task: Task,
    teacher: nn.Module,
    example_input: Batch,
    budget: Budget,
    start: Start = Start(),
    criterion: Callable[[nn.Module], Criterion] = lambda _: importance.DEFAULT,
    quantization: Quantization = Quantization(),
    *,
    calibration: Inputs | None = None,
    layer_order: LayerOrder = "spaced",
    seed: int,
    narrow: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> nn.Module:
    """Return the largest pruned version of a start within the budget, not yet distilled.

    Args:
        task: Task that defines the student architectures.
        teacher: Teacher; untouched.
        example_input: Batch of inputs, (N, ...).
        budget: Budget; a fraction is of the teacher's parameters.
        start: Model to prune.
        criterion: Maps the model to prune to its order of removal.
        quantization: For `bundle_bytes`: quantization of the weights.
        calibration: Inputs without labels on which blocks are compared, (N, ...); None: the example. The form of the
            student does not depend on them.
        layer_order: Which blocks go.
        seed: Seed of the weights of a fresh model.
        narrow: Maps the model to the one whose channels are pruned, such as with fewer rows (`token_rows`).

    Raises:
        UnknownArchitecture: The task has no student architecture of this name.
        NoStack: Blocks are to be dropped, but the model has none that may be.
        InheritanceError: The architecture inherits nothing of the teacher.
        BudgetError, PruneError: As for `budgets.student_of`.
    """
    model = teacher if start.architecture is None else fresh(task, start.architecture, seed=seed)
    if start.inherit is not None:
        model = inheritance.inherit(model, teacher, start.inherit)
    if start.layers is not None:
        model = depth.drop(model, example_input if calibration is None else calibration, start.layers, layer_order)
    if isinstance(budget.parameters, float):  # of the teacher, whatever the student starts from
        budget = replace(budget, parameters=int(budget.parameters * structural.parameters_of(teacher)))
    model = narrow(model)
    return budgets.student_of(model, example_input, budget, criterion(model), quantization)
