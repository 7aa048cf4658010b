"""Positions: every form gives back what it was given; the cost is known before; the smallest form is taken."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.coding import golomb
from fedpress.compression.encoders.top_k import largest
from fedpress.compression.wire import positions
from fedpress.simulations.benchmarks.codec_data import clustered

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
    """The Rice code as docs/reference/wire.md words it, bit by bit."""
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
    if len(support):
        gaps = (np.diff(support, prepend=-1) - 1).astype(np.uint32)
        others.append(len(golomb.pack(golomb.plan(gaps))))
    assert len(data) == (0 if len(support) == n else min(others))


@st.composite
def supports_with_reference(draw: st.DrawFn) -> tuple[Positions, Positions, int]:
    """A support, one that resembles it more or less, and n."""
    support, n = draw(supports())
    other = draw(st.sets(st.integers(0, n - 1), max_size=n)) if n else set()
    kept = set(support.tolist()[:: draw(st.integers(1, 5))])
    return support, np.array(sorted(draw(st.sampled_from([kept, other, kept | other, kept ^ other]))), np.int64), n


@given(supports_with_reference())
def test_the_reference_form_is_what_the_specification_says_and_taken_where_it_is_shorter(
    given_: tuple[Positions, Positions, int],
) -> None:
    support, reference, n = given_
    held, chosen = reference.tolist(), set(support.tolist())
    others = [place for place in range(n) if place not in held]
    shared = len(chosen & set(held))
    inside = [rank for rank, place in enumerate(held) if (place in chosen) != (2 * shared > len(held))]
    outside = [rank for rank, place in enumerate(others) if place in chosen]
    first_tag, first = positions.pack(np.array(inside, np.int64), len(held))
    second_tag, second = positions.pack(np.array(outside, np.int64), len(others))
    mark = zlib.crc32(b"".join(number.to_bytes(4, "little") for number in (len(held), *held)))
    width = 0 if n == 0 else 1 if n < 256 else 2
    data = mark.to_bytes(4, "little") + bytes([first_tag, second_tag])
    data += shared.to_bytes(width, "little") + len(first).to_bytes(width, "little") + first + second
    np.testing.assert_array_equal(positions.unpack(positions.REFERENCE, data, n, len(support), reference), support)
    plain = positions.pack(support, n)
    smaller = (positions.REFERENCE, data) if len(data) < len(plain[1]) else plain
    assert positions.pack(support, n, reference) == smaller
    assert positions.length(positions.REFERENCE, n, len(support))[0] <= len(data)


def test_the_example_of_the_specification() -> None:
    data = bytes.fromhex("b3 b8 22 b6 20 25 03 01 02 55")
    again = positions.unpack(positions.REFERENCE, data, 100, 4, np.array([10, 20, 30, 40]))
    assert again.tolist() == [10, 30, 40, 57]


def test_all_of_the_reference_and_nothing_else_takes_a_few_bytes() -> None:
    """The shared mask of a pruned model: its values travel alone."""
    mask = np.flatnonzero(np.random.default_rng(1).random(1_000_000) < 0.1)
    tag, data = positions.pack(mask, 1_000_000, mask)
    assert tag == positions.REFERENCE and len(data) == 12
    np.testing.assert_array_equal(positions.unpack(tag, data, 1_000_000, len(mask), mask), mask)


def test_a_support_like_the_reference_takes_a_part_of_the_bits() -> None:
    random = np.random.default_rng(1)
    reference = np.flatnonzero(random.random(1_000_000) < 0.01)
    others = random.choice(1_000_000, len(reference) // 10, replace=False)
    support = np.union1d(reference[random.random(len(reference)) < 0.9], others)
    alone, against = positions.pack(support, 1_000_000)[1], positions.pack(support, 1_000_000, reference)[1]
    # H(0.1) = 0.47 bits for each of the reference, and for each tenth entry about 11.4 bits.
    assert 8 * len(alone) / len(support) > 8 and 8 * len(against) / len(support) < 1.05 * (0.47 + 1.14)


def split_mix(seed: int, i: int) -> int:
    """Number i of SplitMix64, as docs/reference/wire.md words it."""
    z = (seed + (i + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


@given(st.integers(0, 2**64 - 1), st.one_of(st.integers(1, 300), st.integers(2**31, 2**32 - 1)), st.data())
def test_drawn_places_are_what_the_specification_says(seed: int, n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, min(n, 300)))
    turn = split_mix(seed, k) % n
    expected = []
    for i in range(k):
        start, stop = i * n // k, (i + 1) * n // k
        expected.append((start + split_mix(seed, i) % (stop - start) + turn) % n)
    again = positions.unpack(positions.SEEDED, seed.to_bytes(8, "little"), n, k)
    assert again.dtype == np.int64 and again.tolist() == sorted(set(expected)) and len(again) == k


@pytest.mark.parametrize(("n", "k"), [(40, 10), (11, 7), (40, 1)])
def test_every_place_is_drawn_equally_often(n: int, k: int) -> None:
    counts, seeds, p = np.zeros(n), 4000, k / n
    for seed in range(seeds):
        counts[positions.drawn(seed, n, k)] += 1
    assert np.abs(counts - seeds * p).max() < 5 * (seeds * p * (1 - p)) ** 0.5


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


def entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bits of one entry that is there with probability p."""
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


@pytest.mark.parametrize("density", [0.001, 0.0075, 0.01, 0.1, 0.2])
def test_uniform_positions_cost_at_most_a_percent_more_than_their_entropy(density: float) -> None:
    k = 100_000
    n = round(k / density)
    support = np.flatnonzero(np.random.default_rng(1).random(n) < density)
    _, data = positions.pack(support, n)
    assert 8 * len(data) <= 1.01 * n * entropy(np.array(len(support) / n))


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1])
def test_clustered_positions_cost_at_most_four_percent_more_than_the_entropy_of_their_blocks(density: float) -> None:
    n, block = 2_000_000, 1 << 16
    support = largest(clustered(n), round(density * n))
    tag, data = positions.pack(support, n)
    sizes = np.diff(np.append(np.arange(0, n, block), n))
    parts = np.bincount(support // block, minlength=len(sizes)) / sizes
    inside = (parts > 0) & (parts < 1)
    assert positions.name(tag) == "groups"
    assert 8 * len(data) <= 1.04 * (sizes[inside] * entropy(parts[inside])).sum()


@pytest.mark.parametrize("k", [100, 300, 1000])
def test_small_supports_pay_nothing_for_what_they_do_not_need(k: int) -> None:
    support = largest(clustered(100 * k), k)
    _, data = positions.pack(support, 100 * k)
    assert len(data) <= min(len(to_bytes(rice_bits(support, b))) for b in range(12))


@pytest.mark.parametrize("support", [[3, 3], [4, 2], [-1, 2], [2, 10]])
def test_what_is_no_support_is_not_packed(support: list[int]) -> None:
    with pytest.raises(ValueError, match="rise strictly"):
        positions.pack(np.array(support, np.int64), 10)


RICE3 = positions.RICE + 3
HEAD4 = "00100000" + "00000000"  # the lowest code is 4 (modulus 6), no bits for each group
HUGE = "01011100" + "00000000"  # code 58 (modulus 3 * 2^28)


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
        # gaps 0, 5, 9 = 0 * 6 + 0, 0 * 6 + 5, 1 * 6 + 3: bit 0: 011; thirds above 0: 011; second of them 1, 0
        (positions.GROUPS, HEAD4 + "011" + "011" + "10" + "1" + "1" + "01", 17, 3, None),
        (positions.GROUPS, HEAD4 + "011" + "011" + "10" + "1" + "1" + "01", 16, 3, errors.InvalidPositions),
        (positions.GROUPS, HEAD4 + "011" + "011" + "10" + "1" + "1" + "0", 17, 3, errors.InvalidPositions),
        (positions.GROUPS, HEAD4 + "011" + "011" + "10" + "1" + "1" + "011", 17, 3, errors.InvalidPositions),
        (positions.GROUPS, HEAD4 + "011" + "011" + "10" + "1" + "1" + "01" + "0" * 8, 17, 3, errors.InvalidPositions),
        (positions.GROUPS, HEAD4 + "011" + "01", 17, 3, errors.InvalidPositions),  # ends in the thirds
        (positions.GROUPS, HEAD4 + "000" + "111" + "00", 17, 3, errors.InvalidPositions),  # and in the second bits
        (positions.GROUPS, "11111100" + "00000000" + "1" * 200, 2**32 - 1, 3, errors.InvalidPositions),  # code 63
        (positions.GROUPS, "00000000" + "11100000" + "1" * 200, 2**32 - 1, 3, errors.InvalidPositions),  # 7 bits
        (positions.GROUPS, "01111100" + "10000000" + "1" * 200, 2**32 - 1, 3, errors.InvalidPositions),  # 62 + 1
        (positions.GROUPS, HUGE + "0" * 28 + "0" + "0" * 6 + "1", 2**32 - 1, 1, errors.InvalidPositions),  # 6 of them
        (positions.GROUPS, HUGE + "0" * 28 + "0" + "0" * 5 + "1", 2**32 - 1, 1, None),  # five are below 2^32 - 1
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
