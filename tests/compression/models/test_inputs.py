"""Inputs of each kind give the same rows, in the same order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models import inputs


class _OnDisk:
    """Rows of a tensor, one at a time, as a file would give them."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __len__(self) -> int:
        return len(self._tensor)

    def take(self, rows: Tensor) -> Tensor:
        return torch.stack([self._tensor[row] for row in rows.tolist()]) if len(rows) else self._tensor[:0]


@given(st.integers(1, 40), st.data())
def test_rows_are_the_same_whatever_the_kind(count: int, data: st.DataObject) -> None:
    tensor = torch.arange(2 * count).reshape(count, 2)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), max_size=9)), dtype=torch.int64)
    named = inputs.take({"x": tensor, "y": tensor + 1}, rows)

    assert inputs.count({"x": tensor}) == inputs.count(_OnDisk(tensor)) == inputs.count(tensor) == count
    assert torch.equal(inputs.take(tensor, rows), tensor[rows])
    assert torch.equal(inputs.take(_OnDisk(tensor), rows), tensor[rows])
    assert torch.equal(named["x"], tensor[rows]) and torch.equal(named["y"], tensor[rows] + 1)


@given(st.integers(0, 40), st.integers(1, 9))
def test_pieces_are_the_inputs_in_order(count: int, most: int) -> None:
    tensor = torch.arange(count)
    for given_inputs in (tensor, _OnDisk(tensor)):
        parts = list(inputs.pieces(given_inputs, most))

        assert torch.equal(torch.cat(parts), tensor)
        sizes = [len(part) for part in parts]
        assert max(sizes) <= most and max(sizes) - min(sizes) <= 1 and len(sizes) == max(1, -(-count // most))


def test_tensors_by_name_are_keyword_arguments() -> None:
    class Difference(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left - right

    batch = {"right": torch.tensor([1.0]), "left": torch.tensor([3.0])}

    assert inputs.call(Difference(), batch).item() == 2
    assert inputs.call(nn.Identity(), torch.tensor([3.0])).item() == 3
    assert inputs.to(batch, "cpu")["left"].item() == 3
    assert inputs.first(batch)["right"].tolist() == [1.0]


WORDS = {"ids": torch.tensor([[5, 6, 7], [5, 0, 0]]), "mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}


@given(st.integers(1, 20), st.data())
def test_a_subset_of_what_is_stored_is_a_view_and_of_a_subset_as_well(count: int, data: st.DataObject) -> None:
    tensor = torch.arange(2 * count).reshape(count, 2)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=9)), dtype=torch.int64)
    some = torch.tensor(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)), dtype=torch.int64)
    part = inputs.subset(_OnDisk(tensor), rows)

    assert isinstance(part, inputs.Rows) and isinstance(part, inputs.Stored) and len(part) == len(rows)
    assert torch.equal(inputs.take(inputs.subset(part, some), slice(None)), tensor[rows][some])
    assert torch.equal(inputs.subset(tensor, rows), tensor[rows])


def test_sequences_are_cut_and_their_mask_is_known_by_name_and_values() -> None:
    more = {**WORDS, "age": torch.tensor([1.0, 2.0]), "score": torch.zeros(2, 3)}

    assert inputs.length(more) == 3
    assert {name: tuple(part.shape) for name, part in inputs.shortened(more, 2).items()} == {
        "ids": (2, 2), "mask": (2, 2), "age": (2,), "score": (2, 2)
    }  # fmt: skip
    assert inputs.length({**WORDS, "flags": torch.ones(2, 4).long()}) == 3  # the mask's
    assert inputs.length({"ids": WORDS["ids"], "flags": torch.ones(2, 4).long()}) is None
    present = inputs.present(more)
    assert present is not None and present.tolist() == [[True, True, True], [True, False, False]]
    assert inputs.present({"ids": WORDS["mask"]}) is None  # the name says nothing
    assert inputs.present({"ids": WORDS["ids"], "mask": WORDS["ids"]}) is None  # nor do these values
    assert inputs.form(more) == "ids int64 (3,), mask int64 (3,), age float32 (), score float32 (3,)"


class _Stored:
    """Stored inputs that answer as a function says."""

    def __init__(self, answer: Callable[[Tensor], object], count: int = 5) -> None:
        self._answer, self._count = answer, count

    def __len__(self) -> int:
        return self._count

    def take(self, rows: Tensor) -> object:
        return self._answer(rows)


@pytest.mark.parametrize(
    ("given_inputs", "message"),
    [
        ({}, "empty mapping"),
        ({"ids": WORDS["ids"], "mask": WORDS["mask"][:1]}, r"'ids' has 2 rows, 'mask' has 1 rows, expected as many"),
        ({**WORDS, "labels": torch.tensor([0, 1])}, r"'labels' is among the inputs; labels are no inputs, but targets"),
        ({"ids": [[5, 6], [7, 8]]}, r"'ids' is a list, expected a tensor \(N, ...\)"),
        ([[1, 2]], "got a list, expected a torch tensor, a mapping"),
        (_Stored(lambda rows: {"x": torch.rand(len(rows), 2)}), "other tensors the second time"),
        (_Stored(lambda rows: {"x": rows.sort().values}), "in the other order"),
        (_Stored(lambda rows: {"x": rows[:1]}), "returned 1 rows, expected 3"),
        (_Stored(lambda rows: rows.numpy()), "got a ndarray, expected a tensor or a mapping"),
        (_Stored(lambda rows: {"x": rows, "label": rows}), "'label' is among the inputs"),
    ],
)
def test_inputs_that_are_none_are_refused(given_inputs: object, message: str) -> None:
    with pytest.raises(inputs.InputsError, match=message):
        inputs.check(given_inputs, "part")


def test_inputs_that_are_some_pass() -> None:
    for fine in (WORDS["ids"], WORDS, _OnDisk(WORDS["ids"]), _Stored(lambda rows: {"x": rows}), _Stored(list, count=0)):
        inputs.check(fine)


def test_a_name_that_the_model_does_not_take_is_an_error_that_names_the_likely_one() -> None:
    class Strict(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return input_ids * attention_mask

    class Any(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **more: Tensor) -> Tensor:
            return input_ids

    ids = WORDS["ids"]
    for model in (Strict(), Any()):
        with pytest.raises(
            inputs.InputsError, match=r"'atention_mask' is no argument of .*did you mean 'attention_mask'"
        ):
            inputs.check_arguments(model, {"input_ids": ids, "atention_mask": ids})
        inputs.check_arguments(model, {"input_ids": ids, "attention_mask": ids})
        inputs.check_arguments(model, ids)
    with pytest.raises(inputs.InputsError, match=r"'age' is no argument of Strict.forward, which takes input_ids, att"):
        inputs.check_arguments(Strict(), {"input_ids": ids, "age": ids})
    inputs.check_arguments(Any(), {"input_ids": ids, "age": ids})


class Taking(list[int]):
    """A data set whose `take` means something else, as that of `datasets.Dataset`."""

    def take(self, number: int) -> list[int]:
        return self[: number.__index__()]


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (Taking(range(9)), r"takes no rows .* stored.Collated\(dataset, collate\)"),
        ([1, 2, 3], r"stored.Collated\(dataset, collate\)"),
        (np.zeros((3, 2)), r"torch.from_numpy\(array\)"),
        (torch.utils.data.DataLoader([1, 2]), r"stored.Collated\(loader.dataset, collate\)"),
    ],
)
def test_what_is_no_input_is_said_to_become_one(given: Any, remedy: str) -> None:
    with pytest.raises(inputs.InputsError, match=remedy):
        inputs.check(given)
