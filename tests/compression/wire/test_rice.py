"""The Rice code: the best parameter, the promised lengths, and what no encoder writes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.tensors.mask import Positions
from fedpress.compression.wire import rice


@st.composite
def drawn_positions(draw: st.DrawFn) -> tuple[Positions, int]:
    n = draw(st.integers(1, 3000))
    return np.array(sorted(draw(st.sets(st.integers(0, n - 1), max_size=60))), np.int64), n


def gaps_of(positions: Positions) -> np.ndarray:
    return (np.diff(positions, prepend=-1) - 1).astype(np.uint32)


@given(drawn_positions(), st.integers(0, 12))
def test_positions_come_back_and_keep_to_the_length(given_: tuple[Positions, int], b: int) -> None:
    positions, n = given_
    gaps, k = gaps_of(positions), len(positions)
    bits = int(k * (b + 1) + (gaps >> b).sum())
    data = rice.pack(gaps, b, bits)
    least, most = rice.length(b, n, k)
    assert len(data) == -(-bits // 8) and least <= len(data) <= most
    np.testing.assert_array_equal(rice.unpack(data, b, n, k), positions)


@given(drawn_positions())
def test_no_number_of_low_bits_costs_less_than_the_best(given_: tuple[Positions, int]) -> None:
    gaps = gaps_of(given_[0])
    costs = [int(len(gaps) * (b + 1) + (gaps >> b).sum()) for b in range(rice.MAX_LOW_BITS + 1)]
    b, bits = rice.best(gaps)
    assert bits == costs[b] == min(costs)


def test_what_no_encoder_writes_is_refused() -> None:
    data = rice.pack(gaps_of(np.array([3, 10, 12])), 1, 10)
    with pytest.raises(errors.InvalidPositions, match="the last position is 12, the vector has 12 entries"):
        rice.unpack(data, 1, 12, 3)
    with pytest.raises(errors.InvalidPositions, match="ends 4 gaps, the header says 2"):
        rice.unpack(data, 1, 100, 2)
    with pytest.raises(errors.LengthMismatch, match="bytes are left over"):
        rice.unpack(data + b"\0", 1, 100, 3)
