"""QSGD: no entry is off by a level of its bucket."""

import numpy as np
import pytest
from tests.compression.samples import decoded_of, normal, side_info_of

from fedpress.compression.encoders import encoder
from fedpress.compression.quantizers import qsgd


def test_qsgd_is_off_by_less_than_a_level() -> None:
    side_info, vector = side_info_of((5000,)), normal(5000)
    for bits in range(2, 9):
        missed = np.abs(decoded_of(encoder.quantized(qsgd.scheme(bits)), vector, side_info) - vector)
        for start in range(0, 5000, qsgd.BUCKET):
            peak = np.abs(vector[start : start + qsgd.BUCKET]).max()
            assert missed[start : start + qsgd.BUCKET].max() < peak / (2 ** (bits - 1) - 1) * (1 + 1e-6)


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range_are_named(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits is {bits}, expected 2 to 8"):
        qsgd.scheme(bits)
