"""Initial students: the pruned teacher, optionally with fewer blocks, or a pruned fresh model of another architecture.

The pruned teacher inherits its remaining weights, also where blocks are dropped (`depth`); another architecture
inherits nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from fedpress.compression import seeds
from fedpress.compression.errors import FedpressError
from fedpress.compression.models.pruning import fine_tuning, importance, structural
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.pruning.settings import Pruning
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.step import Materials, Student
from fedpress.compression.models.students import budgets, depth
from fedpress.compression.models.students.settings import Budget
from fedpress.compression.models.task import Task


class UnknownArchitecture(FedpressError, ValueError):
    """The task has no student architecture of this name."""


@dataclass(frozen=True)
class Start:
    """Model that is pruned to the budget, uniformly over its layers.

    Attributes:
        architecture: One of the task's student architectures, with fresh weights; None: the teacher.
        keep_every: Distance of the blocks kept in each stack; 2 halves the layers, 1 keeps all.
    """

    architecture: str | None = None
    keep_every: int = 1

    def __post_init__(self) -> None:
        if self.keep_every < 1:
            raise ValueError(f"keep_every must be at least 1, got {self.keep_every}: 2 keeps every second layer")


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
        example = task.data().validation.inputs[:1]
        return start_of(
            task,
            model,
            example,
            self.budget,
            self.start,
            lambda _: importance.named(self.pruning),
            self.quantization,
            seed=seed,
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
            seed=materials.seed,
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
    example_input: Tensor,
    budget: Budget,
    start: Start = Start(),
    criterion: Callable[[nn.Module], Criterion] = lambda _: importance.DEFAULT,
    quantization: Quantization = Quantization(),
    *,
    seed: int,
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
        seed: Seed of the weights of a fresh model.

    Raises:
        UnknownArchitecture: The task has no student architecture of this name.
        UnsupportedLayer: Blocks are to be dropped, but the model has no stack of them.
        BudgetError, PruneError: As for `budgets.student_of`.
    """
    model = teacher if start.architecture is None else fresh(task, start.architecture, seed=seed)
    if start.keep_every > 1:
        model = depth.keep_every(model, start.keep_every)
    if isinstance(budget.parameters, float):
        budget = replace(budget, parameters=int(budget.parameters * structural.parameters_of(teacher)))
    return budgets.student_of(model, example_input, budget, criterion(model), quantization)
