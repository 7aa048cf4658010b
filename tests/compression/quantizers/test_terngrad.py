"""TernGrad: a scale for each tensor, at most the clip."""

import numpy as np
import pytest
from tests.compression.samples import decoded_of, normal, side_info_of

from fedpress.compression.encoders import encoder
from fedpress.compression.quantizers import terngrad


def test_terngrad_has_a_scale_for_each_tensor() -> None:
    side_info = side_info_of((3,), (0,), (70000,))
    vector = np.concatenate([[1, -1, 0], np.tile([100, -100], 35000)]).astype(np.float32)
    np.testing.assert_array_equal(decoded_of(encoder.quantized(terngrad.scheme()), vector, side_info), vector)


def test_terngrad_with_a_clip_stays_within_it() -> None:
    vector = normal(1000)
    largest = np.abs(decoded_of(encoder.quantized(terngrad.scheme(clip=1.5)), vector, side_info_of((1000,)))).max()
    np.testing.assert_allclose(largest, 1.5 * vector.std(), rtol=1e-5)


@pytest.mark.parametrize("clip", [0, -1.0, float("inf"), float("nan")])
def test_a_clip_out_of_range_is_named(clip: float) -> None:
    with pytest.raises(ValueError, match=f"clip is {clip}, expected a finite number"):
        terngrad.scheme(clip)
