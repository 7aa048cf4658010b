"""AdaRound: within one scale, closer to the layer's outputs than rounding to nearest, the same twice."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compression.models.quantization.test_gptq import case
from torch import Tensor

from fedpress.compression.models.quantization import adaround, quantized_tensor


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 8), st.integers(0, 99), st.floats(0.3, 1.0))
def test_the_error_is_at_most_a_scale_and_zeros_stay_zero(bits: int, seed: int, cut: float) -> None:
    weight, moments = case(seed, groups=2, inputs=12)
    weight[:, :, ::3] = 0
    largest = quantized_tensor.levels(bits)
    steps = (cut * weight.abs().amax(2, keepdim=True) / largest).expand_as(weight)
    codes = adaround.rounded(weight, steps, moments, largest, iterations=20)
    inside = weight.abs() <= largest * steps
    assert ((codes * steps - weight).abs() <= steps * (1 + 1e-4))[inside].all()
    assert torch.equal(codes, codes.round()) and codes.abs().max() <= largest
    assert not codes[weight == 0].any()


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("cut", [0.6, 1.0])
def test_outputs_are_nearer_than_with_rounding_to_nearest(bits: int, cut: float) -> None:
    weight, moments = case(0)
    largest = quantized_tensor.levels(bits)
    steps = (cut * weight.abs().amax(2, keepdim=True) / largest).expand_as(weight)

    def error(codes: Tensor) -> float:
        change = (codes * steps - weight).double()
        return float((change @ moments * change).sum())

    moments /= moments.diagonal(dim1=1, dim2=2).mean()
    codes = adaround.rounded(weight, steps, moments, largest)
    assert error(codes) < 0.6 * error(torch.round(weight / steps).clamp(-largest, largest))
    assert torch.equal(codes, adaround.rounded(weight, steps, moments, largest))
