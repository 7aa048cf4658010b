"""Accuracy by class, or by given groups, of teacher and student side by side: where the student loses most.

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
"""Inputs in a forward pass."""


class GroupAccuracy(NamedTuple):
    """Accuracy of teacher and student on one group.

    Attributes:
        group: Number of the group, or the class.
        answers: Number of answers judged.
        teacher: Accuracy of the teacher, a fraction.
        student: Accuracy of the student, a fraction.
    """

    group: int
    answers: int
    teacher: float
    student: float

    @property
    def lost(self) -> float:
        """Accuracy that the student loses, a fraction; negative where it gains."""
        return self.teacher - self.student


@dataclass(frozen=True)
class Bias:
    """Accuracy of teacher and student by group; `rows` are in ascending order of the groups' numbers."""

    rows: tuple[GroupAccuracy, ...]

    @property
    def worst(self) -> GroupAccuracy:
        """Group on which the student loses most."""
        return max(self.rows, key=lambda row: row.lost)

    def warning(self, limit: float, least: int = 1) -> str | None:
        """Return a warning about the group that loses most beyond a limit; None where there is none.

        >>> print(Bias((GroupAccuracy(3, 50, 0.9, 0.8), GroupAccuracy(4, 50, 0.9, 0.9))).warning(0.05))
        group 3 loses 10.0 points (90.0 % -> 80.0 %, 50 examples), the limit is 5.0; see `balance` of the distillation

        Args:
            limit: Tolerated loss of accuracy, a fraction.
            least: Groups with fewer answers are ignored.
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
    """Return the accuracy of teacher and student on each group of the examples.

    Args:
        teacher: Model that the student was made from.
        student: Model to compare with it.
        task: Task whose `correct` judges the answers.
        examples: Labeled examples (N, ...).
        groups: Group of each example, int64 (N,); None: the classes, for sequences the class at each place.

    Raises:
        ValueError: There are no examples, or the number of groups differs from that of the examples.
    """
    targets = examples.targets.numpy()
    if len(targets) == 0:
        raise ValueError("compare: got 0 examples, expected at least 1; is this split of the task empty?")
    if groups is not None and groups.shape != (len(targets),):
        raise ValueError(f"compare: groups of shape {groups.shape} for {len(targets)} examples, expected one for each")
    by_answer = (
        targets if groups is None else np.broadcast_to(groups.reshape(-1, *[1] * (targets.ndim - 1)), targets.shape)
    )
    return by_group(judged(teacher, task, examples), judged(student, task, examples), by_answer)


def by_group(teacher: NDArray[np.bool_], student: NDArray[np.bool_], groups: NDArray[np.int64]) -> Bias:
    """Return the accuracy by group from answers that are judged already.

    Args:
        teacher: Whether each answer of the teacher is right, of the targets' shape.
        student: Whether each answer of the student is right, of the same shape.
        groups: Group of each answer, of the same shape.
    """
    return Bias(
        tuple(
            GroupAccuracy(
                int(group), int(members.sum()), float(teacher[members].mean()), float(student[members].mean())
            )
            for group in np.unique(groups)
            for members in [groups == group]
        )
    )


def judged(model: nn.Module, task: Task, examples: Examples) -> NDArray[np.bool_]:
    """Return whether each of the model's answers is right, bool, of the targets' shape.

    Args:
        model: Model to judge; run in evaluation mode, left as it is.
        task: Task whose `correct` judges.
        examples: Labeled examples (N, ...).
    """
    with evaluating(model):
        parts = zip(torch.split(examples.inputs, BATCH), torch.split(examples.targets, BATCH), strict=True)
        return torch.cat([task.correct(model(inputs), targets) for inputs, targets in parts]).numpy()
