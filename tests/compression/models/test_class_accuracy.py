"""Accuracy by group: a mean over the groups' own answers, teacher and student side by side, the worst named."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models import class_accuracy
from fedpress.compression.models.outputs import EvaluationError
from fedpress.compression.models.task import IGNORED, Examples, evaluate
from fedpress.simulations.tasks.digits import Digits


class Says(nn.Module):
    """Answers each example with the class that its first number is."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x[:, 0].long(), 3).float()


class Shifted(Says):
    """Wrong about class 2, always."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.where(x == 2, 0, x))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(5, 7)), min_size=1, max_size=30))
def test_groups_add_up_to_the_accuracy(rows: list[tuple[int, int, int]]) -> None:
    said, targets, groups = (np.array(column) for column in zip(*rows, strict=True))
    examples = Examples(torch.from_numpy(said).float()[:, None], torch.from_numpy(targets))
    for chosen in (None, groups):
        bias = class_accuracy.compare(Says(), Shifted(), Digits(), examples, chosen)
        assert [row.group for row in bias.rows] == sorted(set(targets if chosen is None else groups))
        for model, side in ((Says(), "teacher"), (Shifted(), "student")):
            total = sum(row.answers * getattr(row, side) for row in bias.rows) / len(rows)
            assert total == pytest.approx(evaluate(model, Digits(), examples).accuracy)
        assert all(bias.worst.lost >= row.lost for row in bias.rows)


def test_the_worst_class_is_named_and_warned_of() -> None:
    inputs = torch.tensor([0.0, 1.0, 2.0, 2.0])[:, None]
    bias = class_accuracy.compare(Says(), Shifted(), Digits(), Examples(inputs, torch.tensor([0, 1, 2, 2])))
    assert bias.worst == class_accuracy.GroupAccuracy(2, 2, 1.0, 0.0)
    said = bias.warning(0.5)
    assert said and said.startswith("group 2 loses 100.0 points (100.0 % -> 0.0 %, 2 examples), the limit is 50.0;")
    assert bias.warning(1.0) is None and bias.warning(0.5, least=3) is None


def test_places_of_sequences_count_as_answers() -> None:
    class Sequence(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(x.long(), 3).float().transpose(1, 2)

    targets = torch.tensor([[0, 1], [2, 2]])
    examples = Examples(torch.tensor([[0.0, 0.0], [2.0, 1.0]]), targets)
    by_class = class_accuracy.compare(Sequence(), Sequence(), Digits(), examples)
    assert [(row.group, row.answers, row.student) for row in by_class.rows] == [(0, 1, 1.0), (1, 1, 0.0), (2, 2, 0.5)]
    by_owner = class_accuracy.compare(Sequence(), Sequence(), Digits(), examples, np.array([7, 3]))
    assert [(row.group, row.answers, row.student) for row in by_owner.rows] == [(3, 2, 0.5), (7, 2, 0.5)]


class Sequences(nn.Module):
    """Answers each place with the class that its number is."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x.long(), 3).float().transpose(1, 2)


def test_places_without_a_target_are_of_no_group() -> None:
    examples = Examples(torch.tensor([[0, 1, 1], [2, 0, 0]]), torch.tensor([[0, 2, IGNORED], [2, IGNORED, IGNORED]]))
    bias = class_accuracy.compare(Sequences(), Sequences(), Digits(), examples)
    assert [(row.group, row.answers, row.student) for row in bias.rows] == [(0, 1, 1.0), (2, 2, 0.5)]
    by_owner = class_accuracy.compare(Sequences(), Sequences(), Digits(), examples, np.array([7, 3]))
    assert [(row.group, row.answers, row.student) for row in by_owner.rows] == [(3, 1, 1.0), (7, 2, 0.5)]
    answers = class_accuracy.judged(Sequences(), Digits(), examples)
    assert answers.accuracy == evaluate(Sequences(), Digits(), examples).accuracy == pytest.approx(2 / 3)
    nothing = Examples(examples.inputs, torch.full((2, 3), IGNORED))
    with pytest.raises(EvaluationError, match="none of the targets of 2 examples counts"):
        class_accuracy.judged(Sequences(), Digits(), nothing)


class WholeSequences(Digits):
    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().correct(outputs, targets).all(dim=1)


class Near(Digits):
    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).abs() < 0.1


def test_answers_of_no_class_are_one_group() -> None:
    """One judgment for a whole sequence, and those of a regression."""
    examples = Examples(torch.tensor([[0, 1], [2, 0]]), torch.tensor([[0, 1], [2, 2]]))
    bias = class_accuracy.compare(Sequences(), Sequences(), WholeSequences(), examples)
    assert bias.rows == (class_accuracy.GroupAccuracy(class_accuracy.ALL, 2, 0.5, 0.5),)
    by_owner = class_accuracy.compare(Sequences(), Sequences(), WholeSequences(), examples, np.array([7, 3]))
    assert [(row.group, row.student) for row in by_owner.rows] == [(3, 0.0), (7, 1.0)]
    numbers = Examples(torch.tensor([[0.5], [1.5]]), torch.tensor([0.5, 9.0]))
    regression = class_accuracy.compare(nn.Identity(), Doubled(), Near(), numbers)
    assert regression.worst == class_accuracy.GroupAccuracy(class_accuracy.ALL, 2, 0.5, 0.0)
    said = regression.warning(0.1)
    assert said and said.startswith("the student loses 50.0 points")


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_what_does_not_fit_is_refused() -> None:
    part = Digits().data().validation
    with pytest.raises(ValueError, match=r"groups of shape \(3,\) for 100 examples"):
        class_accuracy.compare(Says(), Says(), Digits(), part, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="got 0 examples"):
        class_accuracy.compare(Says(), Says(), Digits(), part.take(np.array([], np.int64)))
