"""EDEN: what is decoded has the update's own length along the update."""

import numpy as np
import pytest
from tests.compression.samples import decoded_of, normal, side_info_of

from fedpress.compression.encoders import encoder
from fedpress.compression.quantizers import eden


@pytest.mark.parametrize("n", [1, 2, 3, 1000, 8192, 8193, 100_000])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_eden_keeps_the_part_along_the_update(n: int, bits: int) -> None:
    vector = normal(n) ** 3
    decoded = decoded_of(encoder.quantized(eden.scheme(bits)), vector, side_info_of((n,)), seed=n).astype(np.float64)
    np.testing.assert_allclose(decoded @ vector, vector.astype(np.float64) @ vector, rtol=1e-4)


@pytest.mark.parametrize("bits", [0, 5])
def test_bits_out_of_range_are_named(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits is {bits}, expected 1 to 4"):
        eden.scheme(bits)
