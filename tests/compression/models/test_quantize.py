"""int8 per channel: the error bound, symmetry, and what is left alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from torch import nn

from fedpress.compression.errors import NonFiniteError
from fedpress.compression.models import quantize
from fedpress.compression.models.quantize import Quantized

WEIGHTS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 7)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-1, 1, width=32) | st.just(0.0) | st.just(1e-45),
)


@given(WEIGHTS)
def test_the_error_is_at_most_half_a_scale(weights: NDArray[np.float32]) -> None:
    quantized = quantize.quantize_channels(weights)
    restored = quantize.restore(quantized)
    error = np.abs(weights.astype(np.float64) - restored)
    # Beyond the half step, only float32's own rounding of the scale and of the product.
    assert (error <= quantized.scales[:, None] * 0.5 + 1e-6 * np.abs(weights).astype(np.float64)).all()
    assert np.isfinite(restored).all() and np.abs(quantized.codes.astype(int)).max() <= 127
    largest = np.abs(weights).max(axis=1)
    assert (np.abs(quantized.codes).max(axis=1)[largest > 1e-36] == 127).all()  # the whole range is used


@given(WEIGHTS)
def test_quantising_again_changes_nothing_and_signs_are_alike(weights: NDArray[np.float32]) -> None:
    once = quantize.quantize_channels(weights)
    again = quantize.quantize_channels(quantize.restore(once))
    mirrored = quantize.quantize_channels(-weights)
    np.testing.assert_array_equal(once.codes, again.codes)
    np.testing.assert_array_equal(once.codes, -mirrored.codes)


def test_only_float_tensors_of_two_dimensions_are_quantised() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    tensors = quantize.quantize(model)
    assert {name for name, tensor in tensors.items() if isinstance(tensor, Quantized)} == {"0.weight", "3.weight"}
    assert tensors["1.num_batches_tracked"].dtype == np.int64
    assert tensors["1.running_var"].dtype == np.float32


def test_a_quantised_copy_answers_nearly_alike_and_the_model_is_untouched() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = torch.randn(50, 20)

    copied = quantize.quantized_copy(model)

    difference = (copied(inputs) - model(inputs)).abs().max()
    assert 0 < difference < 0.02
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_half_precision_is_restored_to_itself() -> None:
    model = nn.Linear(4, 3).half()
    assert quantize.quantized_copy(model).weight.dtype == torch.float16


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_nan_and_infinity_are_refused(bad: float, name: str) -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.get_parameter(name)[0] = bad
    with pytest.raises(NonFiniteError, match=name):
        quantize.quantize(layer)
