"""Positions: every form gives back what it was given; the cost is known before; the smallest form is taken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedpress.compression import errors, positions

Positions = NDArray[np.int64]


@st.composite
def supports(draw: st.DrawFn) -> tuple[Positions, int]:
    """Positions and n: from few to all, from spread to bunched."""
    n = draw(st.integers(0, 400))
    if draw(st.booleans()):
        chosen = draw(st.sets(st.integers(0, n - 1), max_size=n)) if n else set()
    else:
        start = draw(st.integers(0, n))
        chosen = set(range(start, draw(st.integers(start, n))))
    return np.array(sorted(chosen), np.int64), n


def rice_bits(support: Positions, b: int) -> str:
    """The Rice code as docs/wire.md words it, bit by bit."""
    low, high, before = "", "", -1
    for position in support.tolist():
        gap = position - before - 1
        before = position
        low += "".join(str(gap >> j & 1) for j in range(b))
        high += "0" * (gap >> b) + "1"
    return low + high


def to_bytes(bits: str) -> bytes:
    padded = bits + "0" * (-len(bits) % 8)
    return bytes(int(padded[i : i + 8][::-1], 2) for i in range(0, len(padded), 8))


@given(supports())
def test_what_is_packed_is_unpacked(given_: tuple[Positions, int]) -> None:
    support, n = given_
    tag, data = positions.pack(support, n)
    least, most = positions.length(tag, n, len(support))
    assert positions.known(tag) and least <= len(data) <= most
    again = positions.unpack(tag, data, n, len(support))
    assert again.dtype == np.int64
    np.testing.assert_array_equal(again, support)


@given(supports())
def test_no_form_and_no_parameter_is_shorter(given_: tuple[Positions, int]) -> None:
    support, n = given_
    _, data = positions.pack(support, n)
    rice = min(len(to_bytes(rice_bits(support, b))) for b in range(32))
    width = ((n - 1).bit_length() + 7) // 8 if n else 0
    others = [(n + 7) // 8, width * len(support), rice]
    assert len(data) == (0 if len(support) == n else min(others))


@given(supports(), st.integers(0, 31))
def test_rice_is_read_with_any_parameter_and_is_what_the_specification_says(
    given_: tuple[Positions, int], b: int
) -> None:
    support, n = given_
    data = to_bytes(rice_bits(support, b))
    np.testing.assert_array_equal(positions.unpack(positions.RICE + b, data, n, len(support)), support)
    tag, packed = positions.pack(support, n)
    if tag >= positions.RICE:
        assert packed == to_bytes(rice_bits(support, tag - positions.RICE))


@given(supports())
def test_raw_and_bitmap_are_read(given_: tuple[Positions, int]) -> None:
    support, n = given_
    bitmap = to_bytes("".join("1" if place in set(support.tolist()) else "0" for place in range(n)))
    np.testing.assert_array_equal(positions.unpack(positions.BITMAP, bitmap, n, len(support)), support)
    width = ((n - 1).bit_length() + 7) // 8 if n else 0
    raw = b"".join(int(position).to_bytes(width, "little") for position in support)
    np.testing.assert_array_equal(positions.unpack(positions.RAW, raw, n, len(support)), support)


@pytest.mark.parametrize(
    ("support", "n", "name"),
    [
        ([0, 1, 2], 3, "all"),
        ([], 0, "all"),
        ([], 5, "rice 0"),
        ([65535], 65536, "raw"),
        (list(range(0, 1000, 100)), 1000, "rice 6"),
        ([*range(0, 40, 2), *range(40, 99)], 100, "bitmap"),
        ([*range(0, 40, 2), *range(40, 80)], 100, "rice 0"),
        ([2**32 - 2], 2**32 - 1, "raw"),
        ([5, 2**32 - 2], 2**32 - 1, "raw"),
    ],
)
def test_the_form_that_is_taken(support: list[int], n: int, name: str) -> None:
    tag, data = positions.pack(np.array(support, np.int64), n)
    assert positions.name(tag) == name
    np.testing.assert_array_equal(positions.unpack(tag, data, n, len(support)), support)


def test_uniform_positions_cost_little_more_than_their_entropy() -> None:
    n, k = 10**6, 10**4
    support = np.sort(np.random.default_rng(1).choice(n, k, replace=False))
    _, data = positions.pack(support, n)
    p = k / n
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) / p
    assert 8 * len(data) / k < 1.015 * entropy


@pytest.mark.parametrize("support", [[3, 3], [4, 2], [-1, 2], [2, 10]])
def test_what_is_no_support_is_not_packed(support: list[int]) -> None:
    with pytest.raises(ValueError, match="rise strictly"):
        positions.pack(np.array(support, np.int64), 10)


RICE3 = positions.RICE + 3


@pytest.mark.parametrize(
    ("tag", "bits", "n", "k", "fault"),
    [
        # gaps of 2 and 3: low parts 010 110, high parts 1 1
        (RICE3, "010" + "110" + "1" + "1", 10, 2, None),
        (RICE3, "010" + "110" + "1" + "0", 10, 2, errors.InvalidPositions),  # one gap never ends
        (RICE3, "010" + "110" + "1" + "1" + "1", 10, 2, errors.InvalidPositions),  # one gap too many
        (RICE3, "010" + "110" + "1" + "1" + "0" * 8, 10, 2, errors.LengthMismatch),  # a byte too many
        (RICE3, "010" + "110" + "1" + "1", 6, 2, errors.InvalidPositions),  # the last is 6 of 6
        (RICE3, "010" + "110" + "1" + "01", 10, 2, errors.InvalidPositions),  # the last is 14 of 10
        (positions.BITMAP, "0110000000", 10, 2, None),
        (positions.BITMAP, "0110000001", 10, 2, errors.InvalidPositions),  # three of two
        (positions.BITMAP, "01000000001", 10, 2, errors.InvalidPositions),  # place 10 of 10
        (positions.RAW, "11000000" + "10100000", 10, 2, None),  # 3 and 5
        (positions.RAW, "10100000" + "11000000", 10, 2, errors.InvalidPositions),  # 5 and 3
        (positions.RAW, "11000000" + "11000000", 10, 2, errors.InvalidPositions),  # 3 and 3
        (positions.RAW, "11000000" + "01010000", 10, 2, errors.InvalidPositions),  # 3 and 10
    ],
)
def test_each_fault_of_the_bits_is_found(
    tag: int, bits: str, n: int, k: int, fault: type[errors.PayloadError] | None
) -> None:
    if fault is None:
        assert len(positions.unpack(tag, to_bytes(bits), n, k)) == k
    else:
        with pytest.raises(fault):
            positions.unpack(tag, to_bytes(bits), n, k)
