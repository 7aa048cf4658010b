"""Whom a student costs most: accuracy by class, or by a given group, of teacher and student side by side.

S. Hooker, N. Moorosi, G. Clark, S. Bengio, E. Denton, "Characterising Bias in Compressed Models", 2020: compression
leaves the mean accuracy nearly as it was and takes the loss from a few groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedpress.compression.models.reproducible import evaluating
from fedpress.compression.models.task import Examples, Task

BATCH = 512
"""Inputs that a model answers at a time."""


class GroupAccuracy(NamedTuple):
    """Accuracy on one group, as fractions.

    Attributes:
        group: Its number, or the class.
        answers: How many were judged.
    """

    group: int
    answers: int
    teacher: float
    student: float

    @property
    def lost(self) -> float:
        """What the student loses here; below 0 where it gains."""
        return self.teacher - self.student


@dataclass(frozen=True)
class Bias:
    """Teacher and student by group; `rows` in the order of the groups' numbers."""

    rows: tuple[GroupAccuracy, ...]

    @property
    def worst(self) -> GroupAccuracy:
        """The group that the student loses most on."""
        return max(self.rows, key=lambda row: row.lost)

    def warning(self, limit: float, least: int = 1) -> str | None:
        """Say what is wrong where a group of at least `least` answers loses more than `limit`, a fraction; else None.

        >>> print(Bias((GroupAccuracy(3, 50, 0.9, 0.8), GroupAccuracy(4, 50, 0.9, 0.9))).warning(0.05))
        group 3 loses 10.0 points (90.0 % -> 80.0 %, 50 examples), the limit is 5.0; see `balance` of the distillation
        """
        over = [row for row in self.rows if row.answers >= least and row.lost > limit]
        if not over:
            return None
        row = max(over, key=lambda row: row.lost)
        return (
            f"group {row.group} loses {100 * row.lost:.1f} points ({100 * row.teacher:.1f} % -> {100 * row.student:.1f}"
            f" %, {row.answers} examples), the limit is {100 * limit:.1f}; see `balance` of the distillation"
        )


def compare(
    teacher: nn.Module, student: nn.Module, task: Task, examples: Examples, groups: NDArray[np.int64] | None = None
) -> Bias:
    """Return how well teacher and student answer each group of the examples.

    Args:
        groups: Of each example, (N,); None: the classes, for sequences that of each place.

    Raises:
        ValueError: There are no examples, or not one group for each.
    """
    targets = examples.targets.numpy()
    if len(targets) == 0:
        raise ValueError("compare: got 0 examples, expected at least 1; is this split of the task empty?")
    if groups is not None and groups.shape != (len(targets),):
        raise ValueError(f"compare: groups of shape {groups.shape} for {len(targets)} examples, expected one for each")
    each = targets if groups is None else np.broadcast_to(groups.reshape(-1, *[1] * (targets.ndim - 1)), targets.shape)
    return by_group(judged(teacher, task, examples), judged(student, task, examples), each)


def by_group(teacher: NDArray[np.bool_], student: NDArray[np.bool_], groups: NDArray[np.int64]) -> Bias:
    """Return what answers that were judged already say of each group; all three of the targets' shape."""
    return Bias(
        tuple(
            GroupAccuracy(int(group), int(mine.sum()), float(teacher[mine].mean()), float(student[mine].mean()))
            for group in np.unique(groups)
            for mine in [groups == group]
        )
    )


def judged(model: nn.Module, task: Task, examples: Examples) -> NDArray[np.bool_]:
    """Which of the model's answers are right, of the targets' shape."""
    with evaluating(model):
        parts = zip(torch.split(examples.inputs, BATCH), torch.split(examples.targets, BATCH), strict=True)
        return torch.cat([task.correct(model(inputs), targets) for inputs, targets in parts]).numpy()
