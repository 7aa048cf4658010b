"""Where a student starts: the teacher itself, pruned, or a fresh model of another architecture; with fewer blocks.

A start keeps what it can of the teacher: the pruned teacher its weights, a stack with every second block dropped
(`depth`) those of the blocks that are left, another architecture nothing.
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
    """Which model is pruned to the budget, in every layer alike.

    Attributes:
        architecture: One of the task's student architectures, made fresh; None: the teacher.
        keep_every: Of each stack of blocks, one of so many is kept; 2 halves the layers, 1 keeps all.
    """

    architecture: str | None = None
    keep_every: int = 1

    def __post_init__(self) -> None:
        if self.keep_every < 1:
            raise ValueError(f"keep_every must be at least 1, got {self.keep_every}: 2 keeps every second layer")


@dataclass(frozen=True)
class PruneToBudget:
    """Step: the largest version of a model that is within the budget, every layer pruned alike.

    Attributes:
        budget: What the student may cost, in another way than `removed_fraction`.
        start: Which model is pruned.
        pruning: What goes first: importance and ranking count.
        quantization: For `bundle_bytes`: how the file's weights are written.
    """

    budget: Budget
    start: Start = Start()
    pruning: Pruning = Pruning()
    quantization: Quantization = Quantization()

    def check(self, model: nn.Module, task: Task) -> None:
        """Raise what `start_of` raises for the global model."""
        self.pruned(model, task, seed=0)

    def pruned(self, model: nn.Module, task: Task, *, seed: int) -> nn.Module:
        """Return a model within the budget, without regard to importance.

        Args:
            model: The global model.
            task: Its task.
            seed: Of the weights of a fresh one.
        """
        example = task.data().validation.inputs[:1]
        return start_of(task, model, example, self.budget, self.start, quantization=self.quantization, seed=seed)

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the student pruned, not yet distilled."""
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
    """Return what is removed first of a model.

    Args:
        pruning: Importance and ranking.
        model: Whose gradients count, for `taylor`.
        materials: What these gradients are of.
    """
    gradients = None
    if pruning.importance == "taylor":
        proxy = fine_tuning.answered(materials.model, materials.inputs)
        gradients = importance.gradients(model, materials.task, proxy)
    return Criterion(pruning.importance, pruning.ranking, gradients, seeds.derive("random", materials.seed))


def smaller(pruning: Pruning, materials: Materials, parameters: int) -> nn.Module:
    """Return the global model pruned to at most so many parameters, such as an assistant begins as.

    Args:
        pruning: What goes first: importance and ranking.
        materials: Whose model it is.
        parameters: The most.

    Raises:
        BudgetError, PruneError: As for `structural.prune_to`.
    """
    criterion = criterion_of(pruning, materials.model, materials)
    return structural.prune_to(materials.model, materials.example, parameters, criterion=criterion)


def fresh(task: Task, architecture: str, *, seed: int) -> nn.Module:
    """Return a fresh model of one of the task's student architectures.

    Raises:
        UnknownArchitecture: The task has no student of this name.
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
    """Return the largest model of the chosen kind within the budget, not yet distilled.

    Args:
        task: Whose architectures there are.
        teacher: Left as it is.
        example_input: A batch as it is called with, (N, ...).
        budget: What the student may cost; a fraction is of the teacher's parameters.
        start: What is pruned.
        criterion: What goes first, of the model that is pruned.
        quantization: For `bundle_bytes`: how the file's weights are written.
        seed: Of the weights of a fresh model.

    Raises:
        UnknownArchitecture: The task has no student of this name.
        UnsupportedLayer: Blocks are to be dropped, but the model has no stack of them.
        BudgetError, PruneError: As for `budgets.student_of`.
    """
    model = teacher if start.architecture is None else fresh(task, start.architecture, seed=seed)
    if start.keep_every > 1:
        model = depth.keep_every(model, start.keep_every)
    if isinstance(budget.parameters, float):
        budget = replace(budget, parameters=int(budget.parameters * structural.parameters_of(teacher)))
    return budgets.student_of(model, example_input, budget, criterion(model), quantization)
