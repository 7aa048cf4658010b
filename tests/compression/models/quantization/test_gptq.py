"""GPTQ: codes within the range, zeros kept, and outputs nearer than with rounding to nearest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedpress.compression.models.quantization import gptq, quantized_tensor


def case(seed: int, groups: int = 1, outputs: int = 8, inputs: int = 30) -> tuple[Tensor, Tensor]:
    """Return a weight and the moments of related inputs."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(groups, 50, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    return torch.randn(groups, outputs, inputs, generator=generator), (rows.transpose(1, 2) @ rows / 50).double()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(0, 99), st.integers(1, 3))
def test_codes_are_whole_within_the_range_and_zero_where_the_weight_is(bits: int, seed: int, groups: int) -> None:
    weight, moments = case(seed, groups)
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.4] = 0
    largest = quantized_tensor.levels(bits)
    steps = (weight.abs().amax(2, keepdim=True) / largest).clamp(min=1e-6).expand_as(weight)
    codes = gptq.rounded(weight, steps, moments, largest)
    assert torch.equal(codes, codes.round()) and codes.abs().max() <= largest
    assert not codes[weight == 0].any()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_outputs_are_nearer_than_with_rounding_to_nearest(bits: int) -> None:
    weight, moments = case(0, groups=2)
    largest = quantized_tensor.levels(bits)
    steps = (weight.abs().amax(2, keepdim=True) / largest).expand_as(weight)

    def error(codes: Tensor) -> float:
        change = (codes * steps - weight).double()
        return float((change @ moments * change).sum())

    nearest = torch.round(weight / steps)
    assert error(gptq.rounded(weight, steps, moments, largest)) < 0.5 * error(nearest)
    unrelated = torch.diag_embed(moments.diagonal(dim1=1, dim2=2))
    assert torch.equal(gptq.rounded(weight, steps, unrelated, largest), nearest.double())
