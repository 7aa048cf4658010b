"""Golomb codes by groups: bit by bit as the specification has them, and one error for each fault."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedpress.compression.coding import golomb


def to_bytes(bits: str) -> bytes:
    padded = bits + "0" * (-len(bits) % 8)
    return bytes(int(padded[i : i + 8][::-1], 2) for i in range(0, len(padded), 8))


@st.composite
def numbers(draw: st.DrawFn) -> NDArray[np.uint32]:
    """Numbers whose scale changes along the way, from none to large."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scales = draw(st.lists(st.sampled_from([0.0, 0.4, 1.5, 7.0, 300.0, 5e4, 2e8]), min_size=1, max_size=5))
    parts = [random.exponential(scale, draw(st.integers(1, 400))) for scale in scales]
    return np.minimum(np.concatenate(parts), 2**32 - 1).astype(np.uint32)


def group_bits(chosen: NDArray[np.uint32], codes: list[int]) -> str:
    """The string of numbers by groups as docs/reference/wire.md words it, number by number."""
    width = (max(codes) - min(codes)).bit_length()
    moduli = [1] + [m for s in range(31) for m in (2 << s, 3 << s)]
    bits = "".join(str(code - min(codes) >> j & 1) for j in range(width) for code in codes)
    each = [(x, moduli[codes[i // 256]]) for i, x in enumerate(chosen.tolist())]
    shifts = [(m // 3 if m % 3 == 0 else m).bit_length() - 1 for _, m in each]
    for j in range(max(shifts)):
        bits += "".join(str(x >> j & 1) for (x, _), s in zip(each, shifts, strict=True) if s > j)
    thirds = [(x >> s) % 3 for (x, m), s in zip(each, shifts, strict=True) if m % 3 == 0]
    bits += "".join("1" if third else "0" for third in thirds)
    bits += "".join("1" if third == 2 else "0" for third in thirds if third)
    return bits + "".join("0" * (x // m) + "1" for x, m in each)


@given(numbers())
def test_groups_are_what_the_specification_says(chosen: NDArray[np.uint32]) -> None:
    planned = golomb.plan(chosen)
    data = golomb.pack(planned)
    codes = planned.codes.tolist()
    bits = group_bits(chosen, codes)
    assert data == bytes([min(codes), (max(codes) - min(codes)).bit_length()]) + to_bytes(bits)
    assert len(data) == golomb.length(planned) >= golomb.least(len(chosen)) and planned.bits == len(bits)
    again = golomb.unpack(data, len(chosen))
    assert again.dtype == np.uint32
    np.testing.assert_array_equal(again, chosen)


@pytest.mark.parametrize("scale", [0.4, 7.0, 5e4])
def test_long_rows_of_numbers_are_written_part_by_part_as_in_one(scale: float) -> None:
    random = np.random.default_rng(0)
    chosen = np.concatenate([random.exponential(scale * part, 90_001) for part in (1, 0.1, 30)]).astype(np.uint32)
    planned = golomb.plan_of(lambda start, stop: chosen[start:stop], len(chosen))
    data, codes = golomb.pack(planned), planned.codes.tolist()
    assert data == golomb.pack(golomb.plan(chosen))
    assert data[2:] == to_bytes(group_bits(chosen, codes))
    np.testing.assert_array_equal(golomb.unpack(data, len(chosen)), chosen)
    parts = list(golomb.read(data, len(chosen)))
    assert len(parts) > 2 and sum(len(part) for _, part in parts) == len(chosen)
    for broken in (data[:-1], data + b"\0", data[: len(data) // 2]):
        with pytest.raises(golomb.BitsError):
            golomb.unpack(broken, len(chosen))


@given(st.binary(max_size=40), st.integers(1, 300))
def test_any_bytes_are_read_or_refused(data: bytes, k: int) -> None:
    try:
        read = golomb.unpack(data, k)
    except golomb.BitsError:
        return
    assert read.dtype == np.uint32 and read.shape == (k,)
    # Another code may be shorter, but none of an encoder's is longer than what was read.
    assert golomb.length(golomb.plan(read)) <= len(data)


@pytest.mark.parametrize(
    ("data", "k", "words"),
    [
        ("0200", 3, "there are 2 bytes, 3 numbers take at least 3"),
        ("3f001c05", 3, "the lowest code is 63"),
        ("02071c05", 3, "the codes have 7 bits"),
        ("3d0203", 1, "a group has the code 64, the greatest is 62"),
        ("3e001c05", 3, "fewer than its codes ask for"),
        ("02000000", 3, "the string ends 0 numbers, expected 3"),
        ("02001c0500", 3, "bytes are left over"),
        ("3e000000000002", 1, "a number is not below 2\\^32"),
    ],
)
def test_each_fault_has_its_words(data: str, k: int, words: str) -> None:
    with pytest.raises(golomb.BitsError, match=words):
        golomb.unpack(bytes.fromhex(data), k)
