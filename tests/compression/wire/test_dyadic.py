"""Dyadic values: multiples of one power of two come back exactly, and one error for each fault."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.wire import dyadic


@given(st.lists(st.integers(-(2**24), 2**24), max_size=300), st.integers(-140, 100))
def test_multiples_of_a_power_of_two_are_exact(multiples: list[int], exponent: int) -> None:
    with np.errstate(under="ignore"):
        vector = np.ldexp(np.array(multiples, np.float64), exponent).astype(np.float32)
    data = dyadic.pack(vector)
    assert len(data) >= dyadic.least(len(vector))
    read = dyadic.unpack(data, len(vector))
    np.testing.assert_array_equal(read, vector)
    np.testing.assert_array_equal(np.signbit(read), np.signbit(vector))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=300))
def test_other_values_are_rounded_far_below_the_largest(entries: list[float]) -> None:
    vector = np.array(entries, np.float32)
    missed = np.abs(dyadic.unpack(dyadic.pack(vector), len(vector)).astype(np.float64) - vector)
    assert missed.max() <= 2.0**-31 * float(np.abs(vector).max())


@pytest.mark.parametrize("magnitude", [1.0, 0.375, 2.0**-140, 3.0e38])
def test_equal_magnitudes_take_a_bit_each(magnitude: float) -> None:
    vector = np.float32(magnitude) * np.where(np.arange(801) % 3, 1, -1).astype(np.float32)
    assert len(dyadic.pack(vector)) == dyadic.least(801) == 107
    np.testing.assert_array_equal(dyadic.unpack(dyadic.pack(vector), 801), vector)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("<hIB", 1 << 14, 1, 0) + b"x", "1 bytes are left over behind equal magnitudes"),
        (
            struct.pack("<hIB", 0, 1, 0) + bytes.fromhex("3f0007"),
            "the magnitudes cannot be read: the lowest code is 63",
        ),
        (struct.pack("<hIB", 0, 2**32 - 9, 0) + bytes.fromhex("02001c05"), r"a magnitude reaches 2\^32 units"),
    ],
)
def test_each_fault_has_its_words(data: bytes, words: str) -> None:
    with pytest.raises(errors.InvalidValues, match=words):
        dyadic.unpack(data, 3)
