"""Where a student starts: the teacher itself, pruned, or a fresh model of another architecture; with fewer blocks.

A start keeps what it can of the teacher: the pruned teacher its weights, a stack with every second block dropped
(`depth`) those of the blocks that are left, another architecture nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from fedpress.compression.errors import FedpressError
from fedpress.compression.models.pruning import importance, structural
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.students import budgets, depth
from fedpress.compression.models.students.budgets import Budget
from fedpress.compression.models.task import Task


class UnknownArchitecture(FedpressError, ValueError):
    """The task has no student architecture of this name."""


@dataclass(frozen=True)
class Start:
    """Which model is pruned to the budget.

    Attributes:
        architecture: One of the task's student architectures; None: the teacher.
        keep_every: Of each stack of blocks, one of so many is kept; 2 halves the layers, 1 keeps all.
    """

    architecture: str | None = None
    keep_every: int = 1

    def __post_init__(self) -> None:
        if self.keep_every < 1:
            raise ValueError(f"keep_every must be at least 1, got {self.keep_every}: 2 keeps every second layer")


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
    start: Start,
    criterion: Callable[[nn.Module], Criterion] = lambda _: importance.DEFAULT,
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
    return budgets.student_of(model, example_input, budget, criterion(model))
