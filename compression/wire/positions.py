"""Positions: k strictly increasing integers below n <-> bytes.

Four forms stand alone; the exact cost of each is known before anything is packed, and the smallest is taken:

* Rice: the gaps between positions, in the Golomb-Rice code with the parameter that fits the data best (`rice`).
* groups: the gaps by groups of 256, each with a Golomb parameter of its own (`golomb`). The largest entries of an
  update cluster by layer, and so this goes far below the entropy of independent positions; on uniform ones it stays
  within 1 % of it. Loses to Rice where there are too few gaps to pay for its two bytes of header.
* bitmap: one bit for each of the n places. Rice with b = 0 is the bitmap cut off after its last one, so it is never
  longer; where both are equal the bitmap is taken, which is read faster.
* raw: each position in the least number of whole bytes that holds n - 1. Wins at the very smallest k only.

Where both sides hold positions already, those of the last change of the model or of a mask, there is one more:

* reference: which of the shared positions are there (or missing, if those are fewer), then which others, each as
  positions of their own in the smallest of the forms above (Ozfatura, Ozfatura and Gündüz 2021, "Time-Correlated
  Sparsification for Communication-Efficient Federated Learning"). All of the shared ones and nothing else take less
  than twenty bytes, however many they are.

And one that is no list at all:

* seeded: places drawn at random; the seed travels, 8 bytes, and both sides draw.

The index tag of the header is the form; a Rice tag carries the parameter as well: `RICE + b`.
"""

import struct
import zlib

import numpy as np

from fedpress.compression import errors, seeds
from fedpress.compression.coding import golomb
from fedpress.compression.tensors.mask import Positions
from fedpress.compression.wire import rice

ALL = 0  # no positions at all: every place is there, k = n
RAW = 1
BITMAP = 2
GROUPS = 3
REFERENCE = 4
SEEDED = 5
RICE = 32  # 32 to 63: RICE + b, where b is the number of low bits

_NAMES = {ALL: "all", RAW: "raw", BITMAP: "bitmap", GROUPS: "groups", REFERENCE: "reference", SEEDED: "seeded"}
_HEAD = struct.Struct("<IBB")  # of the reference form: fingerprint, index tags of the two parts


def pack(positions: Positions, n: int, shared: Positions | None = None) -> tuple[int, bytes]:
    """Return the index tag and the bytes of `positions`, in the smallest form.

    Args:
        positions: int64, shape (k,), strictly increasing, in [0, n).
        n: Size of the vector.
        shared: Positions that the decoder holds as well, int64, shape (m,), strictly increasing, in [0, n).

    Raises:
        ValueError: The positions do not rise strictly, or leave [0, n).
        LayoutError: The same of the shared ones.

    >>> pack(np.array([3, 10, 12]), 100)
    (33, b'\\x15\\x03')
    >>> pack(np.array([0, 1, 2, 3]), 4)
    (0, b'')
    >>> held = np.arange(1000) ** 2
    >>> tag, data = pack(held, 1_000_000, shared=held)
    >>> name(tag), len(data), len(pack(held, 1_000_000)[1])
    ('reference', 12, 1391)
    """
    tag, data = _smallest(positions, n)
    if shared is None:
        return tag, data
    coded = _pack_reference(positions, n, shared)
    return (REFERENCE, coded) if len(coded) < len(data) else (tag, data)


def _smallest(positions: Positions, n: int) -> tuple[int, bytes]:
    k = len(positions)
    if k and not (positions[0] >= 0 and positions[-1] < n and (positions[1:] > positions[:-1]).all()):
        raise ValueError(f"positions must rise strictly and stay in [0, {n}); sort them and drop doubles")
    if k == n:
        return ALL, b""
    gaps = np.empty(k, np.uint32)  # words of 32 bits, as n is; straight from the difference, without one of 64 bits
    if k:
        gaps[0] = positions[0]
        np.subtract(positions[1:], positions[:-1], out=gaps[1:], casting="unsafe")
        gaps[1:] -= 1
    b, bits = rice.best(gaps)
    costs = {BITMAP: _bytes(n), RICE + b: _bytes(bits), RAW: k * _width(n)}
    if k:
        groups = golomb.plan(gaps)
        costs[GROUPS] = golomb.length(groups)
    tag = min(costs, key=costs.__getitem__)  # the first of equals
    if tag == GROUPS:
        return tag, golomb.pack(groups)
    if tag == BITMAP:
        return tag, _pack_bitmap(positions, n)
    if tag == RAW:
        return tag, _pack_raw(positions, n)
    return tag, rice.pack(gaps, b, bits)


def known(tag: int) -> bool:
    """Return whether this build reads the index tag.

    >>> known(RICE + 5), known(77)
    (True, False)
    """
    return tag in _NAMES or RICE <= tag <= RICE + rice.MAX_LOW_BITS


def name(tag: int) -> str:
    """Return the name of a known tag, for tables.

    >>> name(RICE + 5)
    'rice 5'
    """
    return _NAMES.get(tag, f"rice {tag - RICE}")


def length(tag: int, n: int, k: int) -> tuple[int, int]:
    """Return the least and the greatest number of bytes that k positions below n take.

    Args:
        tag: A known index tag.
        n: Size of the vector.
        k: Number of positions.

    >>> length(BITMAP, 100, 5), length(RICE + 3, 100, 5)
    ((13, 13), (3, 4))
    """
    if tag == ALL:
        return 0, 0
    if tag == RAW:
        return k * _width(n), k * _width(n)
    if tag == BITMAP:
        return _bytes(n), _bytes(n)
    if tag == GROUPS:
        return (golomb.least(k), max(golomb.least(k), _bytes(n))) if k else (0, 0)
    if tag == REFERENCE:
        return _head_bytes(n), max(_head_bytes(n), _bytes(n))
    if tag == SEEDED:
        return SEED_BYTES, SEED_BYTES
    least, most = rice.length(tag - RICE, n, k)
    return least, min(most, _bytes(n))


def unpack(tag: int, data: bytes | memoryview, n: int, k: int, shared: Positions | None = None) -> Positions:
    """Return the positions that `pack` wrote: int64, shape (k,), strictly increasing and below n.

    Args:
        tag: A known index tag.
        data: The bytes; their number must lie within `length(tag, n, k)`.
        n: Size of the vector.
        k: Number of positions, at most n.
        shared: The positions that they may be coded against; as for `pack`.

    Raises:
        ReferenceMismatch: They are coded against others than the shared ones, or there are none here.
        InvalidPositions: They repeat, fall, leave [0, n), or are not k.
        LengthMismatch: Bytes are left over.
        LayoutError: The shared positions are not below n.

    >>> unpack(33, b"\\x15\\x03", 100, 3)
    array([ 3, 10, 12])
    """
    if tag == ALL:
        return np.arange(n, dtype=np.int64)
    if tag == RAW:
        return _unpack_raw(data, n, k)
    if tag == BITMAP:
        return _unpack_bitmap(data, n, k)
    if tag == GROUPS:
        return _unpack_groups(data, n, k)
    if tag == REFERENCE:
        return _unpack_reference(data, n, k, shared)
    if tag == SEEDED:
        return drawn(int.from_bytes(data, "little"), n, k)
    return rice.unpack(data, tag - RICE, n, k)


# seeded

SEED_BYTES = 8


def drawn(seed: int, n: int, k: int) -> Positions:
    """Return k places below n at random, one of each of k strata of a circle: int64, strictly increasing.

    Law: over the seeds, each place is drawn equally often. The same seed gives the same places
    (docs/reference/wire.md).

    Args:
        seed: 0 to 2^64 - 1.
        n: Size of the vector.
        k: 0 to n.

    >>> drawn(7, 100, 5)
    array([12, 29, 51, 68, 99])
    """
    if not k:
        return np.empty(0, np.int64)
    random = seeds.split_mix(seed, 0, k + 1)
    bounds = np.arange(k + 1, dtype=np.uint64)
    bounds *= np.uint64(n)  # (2^32 - 1)^2 is below 2^64
    bounds //= np.uint64(k)
    places = random[:k]  # in place from here
    places %= np.diff(bounds)
    places += bounds[:-1]
    del bounds
    places += random[k] % np.uint64(n)
    turned = places.view(np.int64)
    below = np.searchsorted(turned, n)
    turned[below:] -= n
    return np.roll(turned, -below)


# reference


def fingerprint(shared: Positions, n: int) -> int:
    """Return the CRC-32 of m and then of the m positions, each as a u32, little-endian.

    Args:
        shared: int64, shape (m,).
        n: Size of the vector.

    Raises:
        LayoutError: The positions do not rise strictly, or leave [0, n).

    >>> f"{fingerprint(np.array([3, 10, 12]), 100):08x}"
    '69fb8e27'
    """
    m = len(shared)
    if m and (shared[0] < 0 or shared[-1] >= n or (np.diff(shared) <= 0).any()):
        raise errors.LayoutError(
            f"the shared positions must rise strictly and stay in [0, {n}); are they sorted, and of this mask's layout?"
        )
    return zlib.crc32(shared.astype("<u4").tobytes(), zlib.crc32(m.to_bytes(4, "little")))


def _head_bytes(n: int) -> int:
    return _HEAD.size + 2 * _width(n + 1)


def _pack_reference(positions: Positions, n: int, shared: Positions) -> bytes:
    mark = fingerprint(shared, n)
    below = np.searchsorted(shared, positions)  # shared ones below each position
    is_shared = np.append(shared, n)[below] == positions
    ranks, others = below[is_shared], ~is_shared
    count, m = len(ranks), len(shared)
    inside_tag, inside = _smallest(_without(ranks, m) if 2 * count > m else ranks, m)
    outside_tag, outside = _smallest(positions[others] - below[others], n - m)
    width = _width(n + 1)
    counts = count.to_bytes(width, "little") + len(inside).to_bytes(width, "little")
    return _HEAD.pack(mark, inside_tag, outside_tag) + counts + inside + outside


def _without(ranks: Positions, m: int) -> Positions:
    """Return the ranks below m that are not among the given ones."""
    missing = np.ones(m, np.bool_)
    missing[ranks] = False
    return np.flatnonzero(missing)


def _unpack_reference(data: bytes | memoryview, n: int, k: int, shared: Positions | None) -> Positions:
    mark, inside_tag, outside_tag = _HEAD.unpack_from(data)
    if shared is None:
        raise errors.ReferenceMismatch(
            f"the positions are coded against the shared positions {mark:08x}, and there are none here; "
            "has this receiver lost them, or was the payload meant for another one?"
        )
    held = fingerprint(shared, n)
    if held != mark:
        raise errors.ReferenceMismatch(
            f"the positions are coded against the shared positions {mark:08x}, those here are {held:08x}: another "
            "round's?"
        )
    m, width, head = len(shared), _width(n + 1), _head_bytes(n)
    count = int.from_bytes(data[_HEAD.size : _HEAD.size + width], "little")
    length = int.from_bytes(data[_HEAD.size + width : head], "little")
    missing = 2 * count > m
    parts = (
        (inside_tag, data[head : head + length], m, m - count if missing else count),
        (outside_tag, data[head + length :], n - m, k - count),
    )
    for tag in (inside_tag, outside_tag):
        if not known(tag) or tag in (REFERENCE, SEEDED):
            raise errors.UnknownFormat(f"a part of the positions has the index tag {tag}; is the sender newer?")
    if count > min(k, m) or k - count > n - m or length > len(data) - head:
        raise errors.InvalidPositions(
            f"{count} of {k} positions are said to be shared ones and to take {length} bytes; "
            f"there are {n} places, {m} of them shared, and {len(data) - head} bytes"
        )
    for part in parts:
        _check_part(*part)
    ranks, others = (unpack(*part) for part in parts)
    ranks = _without(ranks, m) if missing else ranks
    # Place r of those that are not shared has below it the j-th shared one where shared[j] - j <= r.
    others = others + np.searchsorted(shared - np.arange(m), others, side="right")
    return np.sort(np.concatenate([shared[ranks], others]), kind="stable")  # two rising runs: a merge


def _check_part(tag: int, data: bytes | memoryview, places: int, count: int) -> None:
    if tag == ALL and count != places:
        raise errors.InvalidPositions(f"a part of the positions has {count} of {places} places, and says it has all")
    least, most = length(tag, places, count)
    if not least <= len(data) <= most:
        raise errors.InvalidPositions(f"a part of the positions has {len(data)} bytes, expected {least} to {most}")


# groups


def _unpack_groups(data: bytes | memoryview, n: int, k: int) -> Positions:
    if not k:
        return np.empty(0, np.int64)
    try:
        gaps = golomb.unpack(data, k)
    except golomb.BitsError as error:
        raise errors.InvalidPositions(f"the gaps by groups cannot be read: {error}") from None
    end = int(gaps.sum(dtype=np.uint64)) + k  # fewer than 2^32 gaps below 2^32: no overflow, unlike int64
    if end > n:
        raise errors.InvalidPositions(f"the last position is {end - 1}, the vector has {n} entries")
    positions = gaps.astype(np.int64)
    positions += 1
    np.cumsum(positions, out=positions)
    positions -= 1
    return positions


# bitmap, raw


def _pack_bitmap(positions: Positions, n: int) -> bytes:
    bits = np.zeros(n, np.uint8)
    bits[positions] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def _unpack_bitmap(data: bytes | memoryview, n: int, k: int) -> Positions:
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").view(np.bool_)
    count = np.count_nonzero(bits)  # before a word is made for each
    if count != k or bits[n:].any():
        raise errors.InvalidPositions(f"the bitmap marks {count} places, the header says {k} of {n}")
    return np.flatnonzero(bits)


def _width(n: int) -> int:
    return _bytes((n - 1).bit_length()) if n else 0


def _pack_raw(positions: Positions, n: int) -> bytes:
    columns = positions.astype("<i8").view(np.uint8).reshape(-1, 8)
    return columns[:, : _width(n)].tobytes()


def _unpack_raw(data: bytes | memoryview, n: int, k: int) -> Positions:
    columns = np.zeros((k, 8), np.uint8)
    columns[:, : _width(n)] = np.frombuffer(data, np.uint8).reshape(k, _width(n))
    positions: Positions = columns.view("<i8").reshape(k).astype(np.int64)
    if k and (positions[-1] >= n or (np.diff(positions) <= 0).any()):
        raise errors.InvalidPositions("raw positions must rise strictly and stay below the size of the vector")
    return positions


def _bytes(bits: int) -> int:
    return -(-bits // 8)
