"""Codes and scales: the error bound, symmetry, groups, and scales on their grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from fedpress.compression.models.quantization import quantized_tensor

WEIGHTS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 3)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-1, 1, width=32) | st.just(0.0) | st.just(1e-45),
)
BITS = st.integers(2, 8)
GROUPS = st.sampled_from([0, 1, 2, 5, 100])


def wide(rows: NDArray[np.float32], like: NDArray[np.float32], group: int) -> NDArray[np.float64]:
    """The scale of each weight."""
    shape = quantized_tensor.grouped(like, group).shape
    return quantized_tensor.ungrouped(np.broadcast_to(rows[..., None], shape), like.shape).astype(np.float64)


@given(WEIGHTS, BITS, GROUPS, st.booleans())
def test_the_error_is_at_most_half_a_scale(weights: NDArray[np.float32], bits: int, group: int, search: bool) -> None:
    scales = quantized_tensor.find_scales(weights, bits, group, search)
    found = quantized_tensor.to_nearest(weights, scales, bits, group)
    restored = quantized_tensor.restore(found)
    steps = wide(scales, weights, group)
    error = np.abs(weights.astype(np.float64) - restored)
    rounding = 1e-6 * np.abs(weights).astype(np.float64)  # of the product, in float32
    inside = np.abs(weights) <= quantized_tensor.levels(bits) * steps + rounding
    assert (error <= steps / 2 + rounding)[inside].all()
    assert search or inside.all()  # without a search nothing is cut off
    assert np.isfinite(restored).all() and np.abs(found.codes.astype(int)).max() <= quantized_tensor.levels(bits)
    assert restored.shape == weights.shape and found.scales.shape == (
        len(weights),
        quantized_tensor.groups_of(weights.shape, group),
    )


@given(WEIGHTS, BITS, GROUPS)
def test_rounding_again_changes_nothing_and_signs_are_alike(
    weights: NDArray[np.float32], bits: int, group: int
) -> None:
    scales = quantized_tensor.find_scales(weights, bits, group)
    once = quantized_tensor.to_nearest(weights, scales, bits, group)
    again = quantized_tensor.to_nearest(quantized_tensor.restore(once), scales, bits, group)
    np.testing.assert_array_equal(once.codes, again.codes)
    np.testing.assert_array_equal(once.codes, -quantized_tensor.to_nearest(-weights, scales, bits, group).codes)


@given(st.integers(quantized_tensor.MIN_EXPONENT, quantized_tensor.MAX_EXPONENT))
def test_scales_keep_their_place_on_the_grid(exponent: int) -> None:
    scale = quantized_tensor.powers(np.array([exponent]))
    assert quantized_tensor.exponents(scale) == exponent
    assert np.isfinite(scale).all() and abs(float(np.log2(scale[0])) * 16 - exponent) < 1e-3


@given(st.floats(1e-37, 1e38))
def test_the_grid_is_above_and_near(scale: float) -> None:
    found = quantized_tensor.powers(quantized_tensor.exponents(np.array([scale])))[0]
    assert 1 - 1e-5 <= found / scale < 2 ** (1 / 16) * (1 + 1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_searched_scale_has_the_smaller_error(bits: int) -> None:
    weights = np.random.default_rng(0).normal(size=(8, 500)).astype(np.float32)

    def error(search: bool) -> float:
        scales = quantized_tensor.find_scales(weights, bits, 0, search)
        return float(
            np.square(weights - quantized_tensor.restore(quantized_tensor.to_nearest(weights, scales, bits))).mean()
        )

    assert error(True) < 0.8 * error(False)


def test_small_groups_have_the_smaller_error() -> None:
    weights = np.random.default_rng(0).standard_t(4, size=(8, 512)).astype(np.float32)
    errors = [
        float(
            np.square(weights - quantized_tensor.restore(quantized_tensor.to_nearest(weights, scales, 4, group))).mean()
        )
        for group in (0, 128, 32)
        for scales in [quantized_tensor.find_scales(weights, 4, group)]
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 2
