"""Inputs of each kind give the same rows, in the same order."""

from __future__ import annotations

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
