"""Low-rank updates on the wire: factors where these are fewer numbers, and none whose product overflows."""

import numpy as np
import pytest
from tests.compression.samples import side_info_of

from fedpress.compression import errors
from fedpress.compression.encoders import encoder
from fedpress.compression.quantizers import lowrank
from fedpress.compression.tensors import update
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.wire import payloads


def test_factors_whose_product_overflows_are_refused() -> None:
    side_info = side_info_of((6, 5), (7,))
    body = np.concatenate([np.full(11, 1e30), np.zeros(7)]).astype("<f4").tobytes()
    with pytest.raises(errors.NonFiniteValues, match="product of two factors"):
        encoder.decode(payloads.pack_whole(lowrank.FORM, 1, body, side_info.layout), side_info)


def test_factors_are_refused_whose_product_is_rounded_to_infinity() -> None:
    """Each small product is just above half a unit in the last place of the sum: every addition rounds up so far."""
    side_info, small = side_info_of((600, 600)), 2.0**103 * 1.01
    below = float(np.finfo(np.float32).max) - 255 * small  # so that the exact sum is a float32
    for largest, fits in ((below, False), (3.39e38, True)):
        right = np.tile(np.array([largest] + [small] * 254, np.float32), (600, 1))
        body = lowrank.pack(update.LowRank((update.Factors(np.ones((600, 255), np.float32), right),)))
        payload = payloads.pack_whole(lowrank.FORM, 255, body, side_info.layout)
        if fits:
            assert np.isfinite(encoder.decode(payload, side_info).dense()).all()
            continue
        with pytest.raises(errors.NonFiniteValues):
            encoder.decode(payload, side_info)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_tensor_is_factored_where_that_is_fewer_numbers(rank: int) -> None:
    layout = side_info_of((10, 4, 5), (3, 3), (9,), (), (0, 4)).layout
    for spec, part in zip(layout.parameters, lowrank.parts(layout, rank), strict=True):
        assert part.rows * part.columns == spec.size
        factored = rank * (part.rows + part.columns)
        assert part.numbers == min(factored, spec.size) and bool(part.rank) == (factored < spec.size)


def test_what_is_packed_is_read_bit_for_bit() -> None:
    side_info, random = side_info_of((6, 5), (7,)), np.random.default_rng(0)
    left, right = (random.standard_normal((size, 2)).astype(np.float32) for size in (6, 5))
    chosen = update.LowRank((update.Factors(left, right), np.arange(7, dtype=np.float32)))
    payload = payloads.pack_whole(lowrank.FORM, 2, lowrank.pack(chosen), side_info.layout)
    assert encoder.decode(payload, side_info).dense().tobytes() == chosen.dense().tobytes()


def test_a_layout_with_a_mask_has_no_whole_matrices() -> None:
    layout = side_info_of((6, 5)).layout
    with pytest.raises(errors.LayoutError, match="choose another encoder for a sparse model"):
        lowrank.parts(layout.within(Mask.at(np.array([3]), 30)), 1)
