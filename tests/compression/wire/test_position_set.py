"""Sets of positions by themselves: there and back, small where little differs, one fault for each way to be wrong."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.wire import position_set, positions

sets = st.integers(0, 300).flatmap(
    lambda n: st.tuples(st.just(n), *[st.sets(st.integers(0, max(0, n - 1)), max_size=n).map(sorted)] * 2)
)


@given(sets)
def test_there_and_back_with_and_without_a_reference(drawn: tuple[int, list[int], list[int]]) -> None:
    n = drawn[0]
    wanted, known = (np.array(places, np.int64) if n else np.empty(0, np.int64) for places in drawn[1:])
    alone, against = position_set.pack(wanted, n), position_set.pack(wanted, n, known)
    assert len(against) <= len(alone)
    np.testing.assert_array_equal(position_set.unpack(alone, n), wanted)
    np.testing.assert_array_equal(position_set.unpack(alone, n, known), wanted)
    np.testing.assert_array_equal(position_set.unpack(against, n, known), wanted)


def test_only_what_differs_takes_room() -> None:
    draw = np.random.default_rng(1)
    old = np.flatnonzero(draw.random(100_000) < 0.1)
    new = np.sort(np.concatenate([old[100:], np.setdiff1d(draw.integers(0, 100_000, 100), old)]))
    assert len(position_set.pack(new, 100_000)) > 5500 and len(position_set.pack(new, 100_000, old)) < 400
    assert len(position_set.pack(old, 100_000, old)) < 40


@given(st.binary(max_size=60), st.integers(0, 400))
def test_any_bytes_are_read_or_refused(data: bytes, n: int) -> None:
    reference = np.arange(0, n, 3)
    for given_bytes in (data, _signed(data)):
        try:
            found = position_set.unpack(given_bytes, n, reference)
        except errors.PayloadError:
            continue
        assert found.dtype == np.int64 and (np.diff(found) > 0).all() and (found >= 0).all() and (found < n).all()


def _signed(data: bytes) -> bytes:
    """The same with a right checksum, so that it gets further."""
    head, body = data[:9].ljust(9, b"\0"), data[9:]
    return head + zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little") + body


def _made(tag: int, n: int, k: int, body: bytes) -> bytes:
    return _signed(bytes([tag]) + n.to_bytes(4, "little") + k.to_bytes(4, "little") + body)


EVERY_THIRD = np.flatnonzero(np.random.default_rng(2).random(100) < 0.3)
GOOD = position_set.pack(np.array([3, 10, 12]), 100)
FAULTS = {
    "an empty one": (b"", errors.Truncated),
    "half a header": (GOOD[:12], errors.Truncated),
    "half a body": (GOOD[:13], errors.Truncated),
    "more than a body": (_signed(GOOD[:9] + GOOD[13:] + b"\0"), errors.LengthMismatch),
    "a flipped bit": (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), errors.ChecksumMismatch),
    "an unknown tag": (_made(9, 100, 3, b"\0"), errors.UnknownFormat),
    "a seed": (_made(positions.SEEDED, 100, 3, bytes(8)), errors.UnknownFormat),
    "another size": (position_set.pack(np.array([3]), 99), errors.SizeMismatch),
    "too many": (_made(positions.BITMAP, 100, 101, bytes(13)), errors.CountTooLarge),
    "all, but fewer": (_made(positions.ALL, 100, 99, b""), errors.InvalidPositions),
    "a bitmap of others": (_made(positions.BITMAP, 100, 2, b"\1" + bytes(12)), errors.InvalidPositions),
    "another reference": (position_set.pack(EVERY_THIRD[1:], 100, EVERY_THIRD), errors.ReferenceMismatch),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_error(name: str) -> None:
    data, fault = FAULTS[name]
    with pytest.raises(fault):
        position_set.unpack(data, 100)
    if name == "another reference":
        assert data[0] == positions.REFERENCE
        with pytest.raises(fault):
            position_set.unpack(data, 100, np.arange(52))
