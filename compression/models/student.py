"""The student for a budget: the teacher, pruned until it fits. It starts from the teacher's weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fedpress.compression.models import bundle, importance, prune
from fedpress.compression.models.importance import Criterion


@dataclass(frozen=True)
class Budget:
    """What a student may cost: either of the two.

    >>> Budget(parameters=0.25)
    Budget(parameters=0.25, bundle_bytes=None)
    >>> Budget(parameters=0.25, bundle_bytes=20_000)
    Traceback (most recent call last):
    ValueError: a budget is either parameters or bundle_bytes, got parameters=0.25 and bundle_bytes=20000

    Attributes:
        parameters: The most parameters: a whole number, or as a float the fraction of the teacher's, in (0, 1].
        bundle_bytes: The largest download file, all of it counted.
    """

    parameters: int | float | None = None
    bundle_bytes: int | None = None

    def __post_init__(self) -> None:
        if (self.parameters is None) == (self.bundle_bytes is None):
            raise ValueError(
                "a budget is either parameters or bundle_bytes,"
                f" got parameters={self.parameters} and bundle_bytes={self.bundle_bytes}"
            )
        if isinstance(self.parameters, float) and not 0 < self.parameters <= 1:
            raise ValueError(f"parameters as a fraction of the teacher's must be in (0, 1], got {self.parameters}")
        count = self.parameters if isinstance(self.parameters, int) else self.bundle_bytes
        if count is not None and count < 1:
            raise ValueError(f"a budget must be at least 1, got {count}")


def student_of(
    teacher: nn.Module, example_input: Tensor, budget: Budget, criterion: Criterion = importance.DEFAULT
) -> nn.Module:
    """Return the largest pruned version of the teacher within the budget, not yet distilled.

    A budget of bytes is met by the file without its entropy coding, whose length does not depend on the weights: the
    file as it is served, after distillation, can only be shorter.

    Args:
        teacher: The model to prune; untouched.
        example_input: A batch as the teacher is called with, (N, ...).
        budget: What the student may cost.
        criterion: What is removed first.

    Raises:
        BudgetError: Even one channel in every layer is too much.
        PruneError: The model cannot be pruned.
    """
    if budget.bundle_bytes is not None:
        most = budget.bundle_bytes
        return prune.prune_while(
            teacher,
            example_input,
            lambda student: bundle.largest_bytes(student, example_input) <= most,
            f"{most:,} bundle bytes",
            criterion=criterion,
        )
    most_parameters = budget.parameters
    if isinstance(most_parameters, float):
        most_parameters = int(most_parameters * prune.parameters_of(teacher))
    assert most_parameters is not None  # by Budget's own check
    return prune.prune_to(teacher, example_input, most_parameters, criterion=criterion)
