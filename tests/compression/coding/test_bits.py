"""Codes of fixed width: they come back, and take the bytes that they are said to take."""

import numpy as np
import pytest

from fedpress.compression.coding import bits as bit_codes


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 70_001])
def test_codes_come_back(bits: int, count: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, count).astype(np.uint8)
    data = bit_codes.pack_codes(codes, bits)
    assert len(data) == bit_codes.codes_length(count, bits)
    np.testing.assert_array_equal(bit_codes.unpack_codes(memoryview(data), count, bits), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_first_code_stands_in_the_lowest_bits(bits: int) -> None:
    codes = np.arange(19, dtype=np.uint8) & np.uint8((1 << bits) - 1)
    written = int.from_bytes(bit_codes.pack_codes(codes, bits), "little")
    assert [written >> place * bits & (1 << bits) - 1 for place in range(19)] == codes.tolist()
    assert not written >> 19 * bits  # filled up with zeros
