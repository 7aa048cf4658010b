"""Accuracy by class, or by given groups, of teacher and student side by side: where the student loses most.

S. Hooker, N. Moorosi, G. Clark, S. Bengio, E. Denton, "Characterising Bias in Compressed Models", 2020: compression
leaves the mean accuracy nearly as it was and takes the loss from a few groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression.models import forward
from fedpress.compression.models.outputs import EvaluationError, fitted
from fedpress.compression.models.reproducible import evaluating
from fedpress.compression.models.task import NO_TARGETS, Examples, Task, scores_of

ALL: Final = -1
"""Group of answers that are of no class, such as those of a regression."""


class GroupAccuracy(NamedTuple):
    """Accuracy of teacher and student on one group.

    Attributes:
        group: Number of the group, or the class; `ALL`: all answers together, which are of no class.
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
        who = "the student" if row.group == ALL else f"group {row.group}"
        return (
            f"{who} loses {100 * row.lost:.1f} points ({100 * row.teacher:.1f} % -> {100 * row.student:.1f}"
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
    count = len(examples.targets)
    if count == 0:
        raise ValueError("compare: got 0 examples, expected at least 1; is this split of the task empty?")
    if groups is not None and groups.shape != (count,):
        raise ValueError(f"compare: groups of shape {groups.shape} for {count} examples, expected one for each")
    return by_group(judged(teacher, task, examples, groups), judged(student, task, examples, groups))


class Judged(NamedTuple):
    """Answers of a model that count.

    Attributes:
        right: Whether each is right, bool or a fraction, (A,).
        groups: Group of each, int64 (A,).
    """

    right: NDArray[np.generic]
    groups: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Right answers as a fraction of all."""
        return float(self.right.mean(dtype=np.float64))


def by_group(teacher: Judged, student: Judged) -> Bias:
    """Return the accuracy by group from answers that are judged already.

    Args:
        teacher: Answers of the teacher.
        student: Answers of the student to the same questions.
    """
    return Bias(
        tuple(
            GroupAccuracy(
                int(group),
                int(members.sum()),
                float(teacher.right[members].mean(dtype=np.float64)),
                float(student.right[members].mean(dtype=np.float64)),
            )
            for group in np.unique(teacher.groups)
            for members in [teacher.groups == group]
        )
    )


def judged(
    model: nn.Module,
    task: Task,
    examples: Examples,
    groups: NDArray[np.int64] | None = None,
    batch_size: int = 512,
) -> Judged:
    """Return which of a model's answers are right, of those that count.

    Args:
        model: Model to judge; run in evaluation mode, left as it is.
        task: Task whose `correct` and `scored` judge.
        examples: Labeled examples (N, ...).
        groups: Group of each example, int64 (N,); None: the classes, for sequences the class at each place.
        batch_size: Largest number of examples in a forward pass.

    Raises:
        EvaluationError: As for `task.evaluate`.
    """
    right, of_answers = [], []
    with evaluating(model), forward.batches(model, examples.inputs, batch_size) as batches:
        for rows, outputs, batch in batches:
            targets = fitted(examples.targets[rows], outputs, batch)
            right.append(scores_of(task, outputs, targets))
            named = None if groups is None else torch.from_numpy(groups[rows])
            of_answers.append(_groups(task, targets, named, len(right[-1])))
    scores, numbers = torch.cat(right).numpy(), torch.cat(of_answers).numpy()
    if len(scores) == 0:
        raise EvaluationError(NO_TARGETS.format(len(examples.targets)))
    return Judged(scores, numbers)


def _groups(task: Task, targets: Tensor, groups: Tensor | None, answers: int) -> Tensor:
    """Return the group of each of a batch's answers, int64 (A,): the one given, the class, or `ALL`."""
    scored = task.scored(targets)
    count = len(targets)
    if groups is None and not targets.is_floating_point() and int(scored.sum()) == answers:
        return targets[scored].long()
    if groups is not None and int(scored.sum()) == answers:
        return groups.reshape(-1, *[1] * (targets.ndim - 1)).expand_as(targets)[scored]
    if groups is not None and answers == count:
        return groups
    if groups is not None:
        raise EvaluationError(
            f"{type(task).__name__}.correct returns {answers} answers for {count} examples, of which `scored` counts"
            f" {int(scored.sum())} targets: which group each is of is unknown; return one for each target or example"
        )
    return torch.full((answers,), ALL)
