"""Logarithmic levels: as near as the bits allow, and as the specification has them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedpress.compression.tensors.layout import Vector
from fedpress.compression.wire import log_levels, values

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.floats(-1, 1, width=32)
VECTORS = npst.arrays(np.float32, st.integers(0, 600), elements=FINITE, fill=FINITE)


@pytest.mark.parametrize(("name", "bound"), [("log4", 0.2), ("log6", 0.06), ("log8", 0.015)])
@given(st.integers(0, 2**32), st.floats(-30, 30), st.floats(0.1, 3))
def test_logarithmic_values_are_off_by_half_a_level_within_three_octaves(
    name: str, bound: float, seed: int, scale: float, octaves: float
) -> None:
    """With 4 bits and four octaves 1.25 is the farthest from its neighbors 1 and 1.5, in proportion: a fifth.

    Two bits more divide the distance of the levels by four; the lowest level may lie an eighth of an octave higher.
    """
    random = np.random.default_rng(seed)
    magnitudes = 2 ** random.uniform(scale, scale + octaves, 700)
    vector = (magnitudes * random.choice([-1, 1], 700)).astype(np.float32)
    format = values.by_name(name)
    missed = format.unpack(format.pack(vector), 700) - vector
    for start in range(0, 700, 256):
        part = slice(start, start + 256)
        assert np.linalg.norm(missed[part]) <= bound * np.linalg.norm(vector[part])


@pytest.mark.parametrize("bits", [4, 6, 8])
@given(vector=VECTORS)
def test_logarithmic_values_are_read_as_the_specification_says(bits: int, vector: Vector) -> None:
    format, k = values.by_name(f"log{bits}"), len(vector)
    data = format.pack(vector)
    heads = np.frombuffer(data, "<u2", -(-k // 256)).tolist()
    string = int.from_bytes(data[2 * len(heads) :], "little")
    expected = []
    for i in range(k):
        code, head = string >> bits * i & (1 << bits) - 1, heads[i // 256]
        level, shift = code % (1 << bits - 1), 24 - bits + head // 2**11 % 4
        pattern = head % 2**11 * 2 ** max(shift, 20) + level * 2**shift
        pattern *= not (level == 0 and head // 2**13 % 2)
        expected.append(pattern | (code >> bits - 1) << 31)
    np.testing.assert_array_equal(format.unpack(data, k).view(np.uint32), np.array(expected, np.uint32))


@given(st.binary(min_size=log_levels.length(300, 6), max_size=log_levels.length(300, 6)))
def test_any_bytes_of_the_right_length_are_values_or_infinite(data: bytes) -> None:
    read = log_levels.unpack(data, 300, 6)
    assert read.shape == (300,) and read.dtype == np.float32 and not np.isnan(read).any()
