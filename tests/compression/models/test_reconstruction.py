"""What is free makes up for what is settled, as least squares would; with unrelated inputs nothing is passed on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedpress.compression.models import reconstruction
from fedpress.compression.models.reconstruction import ReplaceColumn


def moments_of(groups: int, inputs: int, seed: int) -> Tensor:
    rows = torch.randn(groups, 60, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = rows @ torch.randn(inputs, inputs, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return rows.transpose(1, 2) @ rows / 60


def whole(index: int, column: Tensor) -> Tensor:
    return torch.round(column)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.integers(0, 9))
def test_with_a_diagonal_each_column_is_settled_as_if_alone(
    groups: int, outputs: int, inputs: int, block: int, seed: int
) -> None:
    torch.manual_seed(seed)
    weight = 3 * torch.randn(groups, outputs, inputs)
    moments = torch.diag_embed(torch.rand(groups, inputs) + 0.1)
    settled = reconstruction.reconstructed(weight, moments, lambda *_: whole, block)
    assert torch.equal(settled.float(), torch.round(weight))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 9), st.integers(0, 11))
def test_free_columns_take_the_values_of_least_squares(inputs: int, block: int, seed: int, removed: int) -> None:
    moments, removed = moments_of(2, inputs, seed), min(removed, inputs - 1)
    weight = torch.randn(2, 3, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def replace_column(index: int, column: Tensor) -> Tensor:
        return torch.zeros_like(column) if index <= removed else column

    settled = reconstruction.reconstructed(weight, moments, lambda *_: replace_column, block)
    damped = moments + torch.diag_embed(
        0.01 * moments.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).expand(-1, inputs)
    )
    free = slice(removed + 1, inputs)
    # The derivative of tr(D H D^T) for the free columns is zero.
    slope = ((settled - weight) @ damped)[:, :, free]
    assert not settled[:, :, : removed + 1].any() and slope.abs().max().item() < 1e-8 if slope.numel() else True


def test_rounding_by_columns_costs_less_than_rounding_each_alone() -> None:
    moments = moments_of(1, 40, 0)
    weight = 2 * torch.randn(1, 16, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen: list[tuple[slice, torch.Size, torch.Size]] = []

    def begin(columns: slice, values: Tensor, diagonal: Tensor) -> ReplaceColumn:
        seen.append((columns, values.shape, diagonal.shape))
        return whole

    settled = reconstruction.reconstructed(weight, moments, begin, 16)
    assert seen == [
        (slice(first, last), (1, 16, last - first), (1, last - first)) for first, last in ((0, 16), (16, 32), (32, 40))
    ]

    def error(change: Tensor) -> float:
        return float((change @ moments * change).sum())

    assert error(settled - weight) < 0.6 * error(torch.round(weight) - weight)
    again = reconstruction.reconstructed(weight, moments, begin, 7)
    torch.testing.assert_close(again, settled)  # whatever the blocks are


@pytest.mark.parametrize("inputs", [1, 5])
def test_inputs_that_are_always_zero_and_dependent_ones_are_no_trouble(inputs: int) -> None:
    weight = torch.randn(1, 3, inputs)
    for moments in (torch.zeros(1, inputs, inputs), torch.ones(1, inputs, inputs)):
        settled = reconstruction.reconstructed(weight, moments, lambda *_: whole)
        assert settled.isfinite().all()
