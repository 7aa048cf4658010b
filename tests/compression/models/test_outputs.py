"""Outputs of each structure: which tensor answers, and sequences of unlike lengths as one batch."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedpress.compression.models import outputs
from fedpress.compression.models.outputs import IGNORED


class Named(OrderedDict[str, Any]):
    """Outputs whose entries are attributes, as large libraries of models return them."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Cache:
    """What is no output."""


def test_of_outputs_by_name_the_logits_answer() -> None:
    logits = torch.rand(2, 7, 3)
    for found in (Named(loss=None, logits=logits, cache=Cache()), {"logits": logits}, outputs.Logits(logits=logits)):
        assert outputs.answers(found) is logits
        assert torch.equal(outputs.class_second(found), logits.transpose(1, 2))
        assert outputs.with_answers(found, logits + 1).logits.equal(logits + 1)
        assert list(map(id, outputs.tensors(found))) == [id(logits)]
    assert outputs.answers(logits) is logits and outputs.class_second(logits) is logits
    assert torch.equal(outputs.with_answers(logits, logits + 1), logits + 1)
    of_images = torch.rand(2, 3, 8, 8)  # of a segmentation, classes second
    assert outputs.class_second({"logits": of_images}) is of_images


def test_what_holds_no_tensors_is_left_out_of_joined_outputs() -> None:
    parts = [Named(logits=torch.full((1, 2), float(at)), cache=Cache(), states=(torch.ones(1), None)) for at in (1, 2)]
    found = outputs.joined(parts)
    assert type(found) is Named and found.logits.tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert found.cache is None and found.states[0].tolist() == [1.0, 1.0] and found.states[1] is None
    assert outputs.mapped(found, lambda tensor: tensor + 1).logits.tolist() == [[2.0, 2.0], [3.0, 3.0]]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=5), st.booleans())
def test_sequences_of_unlike_lengths_are_joined_with_a_value_around_them(
    shapes: list[tuple[int, int]], before: bool
) -> None:
    parts = [torch.full((rows, length, 2), float(number)) for number, (rows, length) in enumerate(shapes)]
    whole = outputs.padded(parts, -1.0, before=before)
    longest, at = max(length for _, length in shapes), 0
    assert whole.shape == (sum(rows for rows, _ in shapes), longest, 2)
    for part, (rows, length) in zip(parts, shapes, strict=True):
        own = slice(longest - length, None) if before else slice(0, length)
        assert torch.equal(whole[at : at + rows, own], part)
        assert int((whole[at : at + rows] == -1).sum()) == rows * (longest - length) * 2
        at += rows


def ids(length: int, count: int = 2) -> dict[str, Tensor]:
    return {"ids": torch.ones(count, length, dtype=torch.int64)}


@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 4), st.booleans())
def test_targets_have_the_length_of_their_batch(length: int, most: int, classes: int, left: bool) -> None:
    """Whether it is longer or shorter than they are held, and padded on the right or on the left."""
    real = min(length, most)
    own = torch.arange(2 * real).reshape(2, real)
    targets = torch.full((2, most), IGNORED)
    targets[:, most - real :] = own if left else targets[:, most - real :]
    if not left:
        targets[:, :real] = own
    logits = torch.zeros(2, length, classes + 9)  # more classes than places: the shapes tell
    found = outputs.fitted(targets, logits, ids(length))
    assert found.shape == (2, length) and torch.equal(found[found != IGNORED], own.flatten())


def test_logits_by_name_say_their_length_themselves() -> None:
    """As of a decoder, whose sequences are not as long as the encoder's."""
    targets = torch.tensor([[4, 5, IGNORED, IGNORED]])
    assert outputs.fitted(targets, {"logits": torch.zeros(1, 2, 9)}, ids(7, count=1)).tolist() == [[4, 5]]


def test_other_targets_stay_as_they_are() -> None:
    one_each, fractions, wide = torch.ones(2).long(), torch.rand(2, 5), torch.ones(2, 5).long()
    assert outputs.fitted(one_each, torch.zeros(2, 3), ids(4)) is one_each
    assert outputs.fitted(fractions, torch.zeros(2, 4), ids(4)) is fractions
    assert outputs.fitted(wide, torch.zeros(2, 3, 5), ids(4)) is wide  # five labels of each text
    assert outputs.fitted(wide, torch.zeros(2, 4, 9), ids(4)) is wide  # targets beyond the batch: the loss says so
    assert outputs.fitted(wide, torch.zeros(2, 9, 5), torch.zeros(2, 4)) is wide


def test_a_dataclass_is_refused_with_a_way_out() -> None:
    @dataclass
    class Answer:
        logits: Tensor

    with pytest.raises(outputs.EvaluationError, match=r"returns a Answer, .*: return vars\(outputs\), a mapping"):
        outputs.tensors(Answer(torch.ones(2, 3)))
    assert len(outputs.tensors(vars(Answer(torch.ones(2, 3))))) == 1


def test_rounding_is_no_difference() -> None:
    one = torch.randn(50)
    assert outputs.same([one], [one + 1e-6]) and not outputs.same([one], [one + 0.01])
    assert not outputs.same([one], []) and not outputs.close(one, one[:1])
    with pytest.raises(outputs.EvaluationError, match="returns a Cache, expected a tensor"):
        outputs.tensors(Cache())


@pytest.mark.parametrize("spoil", [float("nan"), float("inf"), -float("inf")])
def test_rounding_is_no_difference_and_neither_are_infinities_in_the_same_places(spoil: float) -> None:
    one = torch.randn(50)
    assert outputs.close(one, one + 1e-6) and not outputs.close(one, one + 0.01)
    other = one.clone()
    other[3] = spoil
    assert outputs.close(other, other.clone()) and not outputs.close(one, other)
    assert not outputs.close(one, one[:49]) and not outputs.close(one > 0, one < 0)
