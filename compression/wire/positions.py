"""Positions: k strictly increasing integers below n <-> bytes.

Four forms stand alone; the exact cost of each is known before anything is packed, and the smallest is taken:

* Rice: the gaps between positions, in the Golomb-Rice code with the parameter that fits the data best (Golomb 1966,
  "Run-length encodings"; Rice and Plaunt 1971, "Adaptive variable-length coding"). The low bits of all gaps come
  first, then all high parts in unary, so that both are written and read by vector operations.
* groups: the gaps by groups of 256, each with a Golomb parameter of its own (`golomb`). The largest entries of an
  update cluster by layer, and so this goes far below the entropy of independent positions; on uniform ones it stays
  within 1 % of it. Loses to Rice where there are too few gaps to pay for its two bytes of header.
* bitmap: one bit for each of the n places. Rice with b = 0 is the bitmap cut off after its last one, so it is never
  longer; where both are equal the bitmap is taken, which is read faster.
* raw: each position in the least number of whole bytes that holds n - 1. Wins at the very smallest k only.

Where both sides hold a reference, a support sent before or the mask of a pruned model, there is one more:

* reference: which places of the reference are there (or missing, if those are fewer), then which others, each as
  positions of their own in the smallest of the forms above (Ozfatura, Ozfatura and Gündüz 2021, "Time-Correlated
  Sparsification for Communication-Efficient Federated Learning"). All of the reference and nothing else takes less than
  twenty bytes, whatever its size.

And one that is no list at all:

* seeded: places drawn at random; the seed travels, 8 bytes, and both sides draw.

The index tag of the header is the form; a Rice tag carries the parameter as well: `RICE + b`.
"""

import struct
import zlib
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors, seeds
from fedpress.compression.coding import golomb
from fedpress.compression.tensors.layout import BLOCK
from fedpress.compression.tensors.side_info import PositionSet

Positions: TypeAlias = NDArray[np.int64]

ALL = 0  # no positions at all: every place is there, k = n
RAW = 1
BITMAP = 2
GROUPS = 3
REFERENCE = 4
SEEDED = 5
RICE = 32  # 32 to 63: RICE + b, where b is the number of low bits
MAX_RICE = 31

_NAMES = {ALL: "all", RAW: "raw", BITMAP: "bitmap", GROUPS: "groups", REFERENCE: "reference", SEEDED: "seeded"}
_HEAD = struct.Struct("<IBB")  # of the reference form: fingerprint, index tags of the two parts


def pack(positions: Positions, n: int, reference: PositionSet | None = None) -> tuple[int, bytes]:
    """Return the index tag and the bytes of `positions`, in the smallest form.

    Args:
        positions: int64, shape (k,), strictly increasing, in [0, n).
        n: Size of the vector.
        reference: A support that the decoder holds as well, int64, shape (m,), strictly increasing, in [0, n).

    Raises:
        ValueError: The positions do not rise strictly, or leave [0, n).
        LayoutError: The same of the reference.

    >>> pack(np.array([3, 10, 12]), 100)
    (33, b'\\x15\\x03')
    >>> pack(np.array([0, 1, 2, 3]), 4)
    (0, b'')
    >>> support = np.arange(1000) ** 2
    >>> tag, data = pack(support, 1_000_000, reference=support)
    >>> name(tag), len(data), len(pack(support, 1_000_000)[1])
    ('reference', 12, 1391)
    """
    tag, data = _smallest(positions, n)
    if reference is None:
        return tag, data
    coded = _pack_reference(positions, n, reference)
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
    b, bits = _best_rice(gaps)
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
    return tag, _pack_rice(gaps, b, bits)


def known(tag: int) -> bool:
    """Return whether this build reads the index tag.

    >>> known(RICE + 5), known(77)
    (True, False)
    """
    return tag in _NAMES or RICE <= tag <= RICE + MAX_RICE


def name(tag: int) -> str:
    """Return the name of a known tag, for tables.

    >>> name(RICE + 5)
    'rice 5'
    """
    return _NAMES.get(tag, f"rice {tag - RICE}")


def length(tag: int, n: int, k: int) -> tuple[int, int]:
    """Return the least and the greatest number of bytes that k positions below n take in this form.

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
    b = tag - RICE
    # k low parts and k ones that end the high parts; the high parts sum to at most (n - k) / 2^b.
    least = k * (b + 1)
    most = least + ((n - k) >> b) if k else 0
    return _bytes(least), min(_bytes(most), _bytes(n))


def unpack(tag: int, data: bytes | memoryview, n: int, k: int, reference: PositionSet | None = None) -> Positions:
    """Return the positions that `pack` wrote: int64, shape (k,), strictly increasing and below n.

    Args:
        tag: A known index tag.
        data: The bytes; their number must lie within `length(tag, n, k)`.
        n: Size of the vector.
        k: Number of positions, at most n.
        reference: The support that they may be coded against; as for `pack`.

    Raises:
        ReferenceMismatch: They are coded against another reference, or against one where none is given.
        InvalidPositions: They repeat, fall, leave [0, n), or are not k.
        LengthMismatch: Bytes are left over.
        LayoutError: The reference given is none of n entries.

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
        return _unpack_reference(data, n, k, reference)
    if tag == SEEDED:
        return drawn(int.from_bytes(data, "little"), n, k)
    return _unpack_rice(data, tag - RICE, n, k)


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


def fingerprint(reference: PositionSet, n: int) -> int:
    """Return the CRC-32 of m and then of the m positions, each as a u32, little-endian.

    Args:
        reference: int64, shape (m,).
        n: Size of the vector.

    Raises:
        LayoutError: The positions do not rise strictly, or leave [0, n).

    >>> f"{fingerprint(np.array([3, 10, 12]), 100):08x}"
    '69fb8e27'
    """
    m = len(reference)
    if m and (reference[0] < 0 or reference[-1] >= n or (np.diff(reference) <= 0).any()):
        raise errors.LayoutError(
            f"the reference must rise strictly and stay in [0, {n}); is it sorted, and of this epoch's layout?"
        )
    return zlib.crc32(reference.astype("<u4").tobytes(), zlib.crc32(m.to_bytes(4, "little")))


def _head_bytes(n: int) -> int:
    return _HEAD.size + 2 * _width(n + 1)


def _pack_reference(positions: Positions, n: int, reference: PositionSet) -> bytes:
    mark = fingerprint(reference, n)
    below = np.searchsorted(reference, positions)  # places of the reference below each position
    known = np.append(reference, n)[below] == positions
    ranks, others = below[known], ~known
    shared, m = len(ranks), len(reference)
    inside_tag, inside = _smallest(_without(ranks, m) if 2 * shared > m else ranks, m)
    outside_tag, outside = _smallest(positions[others] - below[others], n - m)
    width = _width(n + 1)
    counts = shared.to_bytes(width, "little") + len(inside).to_bytes(width, "little")
    return _HEAD.pack(mark, inside_tag, outside_tag) + counts + inside + outside


def _without(ranks: Positions, m: int) -> Positions:
    """Return the ranks below m that are not among these."""
    missing = np.ones(m, np.bool_)
    missing[ranks] = False
    return np.flatnonzero(missing)


def _unpack_reference(data: bytes | memoryview, n: int, k: int, reference: PositionSet | None) -> Positions:
    mark, inside_tag, outside_tag = _HEAD.unpack_from(data)
    if reference is None:
        raise errors.ReferenceMismatch(
            f"the positions are coded against the reference {mark:08x}, and none is given here; "
            "does the sender take this receiver for one that has it?"
        )
    own = fingerprint(reference, n)
    if own != mark:
        raise errors.ReferenceMismatch(
            f"the positions are coded against the reference {mark:08x}, the one here is {own:08x}: another round's?"
        )
    m, width, head = len(reference), _width(n + 1), _head_bytes(n)
    shared = int.from_bytes(data[_HEAD.size : _HEAD.size + width], "little")
    length = int.from_bytes(data[_HEAD.size + width : head], "little")
    missing = 2 * shared > m
    parts = (
        (inside_tag, data[head : head + length], m, m - shared if missing else shared),
        (outside_tag, data[head + length :], n - m, k - shared),
    )
    for tag in (inside_tag, outside_tag):
        if not known(tag) or tag in (REFERENCE, SEEDED):
            raise errors.UnknownFormat(f"a part of the positions has the index tag {tag}; is the sender newer?")
    if shared > min(k, m) or k - shared > n - m or length > len(data) - head:
        raise errors.InvalidPositions(
            f"{shared} of {k} positions are said to be of the reference and to take {length} bytes; "
            f"there are {n} places, {m} of them of the reference, and {len(data) - head} bytes"
        )
    for part in parts:
        _check_part(*part)
    ranks, others = (unpack(*part) for part in parts)
    ranks = _without(ranks, m) if missing else ranks
    # Place r of those that are not in the reference has below it the j-th of the reference where reference[j] - j <= r.
    others = others + np.searchsorted(reference - np.arange(m), others, side="right")
    return np.sort(np.concatenate([reference[ranks], others]), kind="stable")  # two rising runs: a merge


def _check_part(tag: int, data: bytes | memoryview, places: int, count: int) -> None:
    if tag == ALL and count != places:
        raise errors.InvalidPositions(f"a part of the positions has {count} of {places} places, and says it has all")
    least, most = length(tag, places, count)
    if not least <= len(data) <= most:
        raise errors.InvalidPositions(f"a part of the positions has {len(data)} bytes, expected {least} to {most}")


# Rice


def _best_rice(gaps: golomb.Numbers) -> tuple[int, int]:
    """Return the number of low bits that costs least, and that cost in bits.

    cost(b) = k (b + 1) + sum(gap >> b). It is convex in b: cost(b + 1) - cost(b) = k - sum(ceil((gap >> b) / 2)), and
    that sum falls with b. Once 2^b is above the mean gap it is less than k, so the best b lies below: walk down.
    """
    k = len(gaps)
    if not k:
        return 0, 0

    def cost(b: int) -> int:
        return k * (b + 1) + _sum(gaps, b)

    b = min(MAX_RICE, (_sum(gaps, 0) // k).bit_length())
    best = cost(b)
    while b > 0 and (lower := cost(b - 1)) <= best:
        b, best = b - 1, lower
    return b, best


def _sum(gaps: golomb.Numbers, b: int) -> int:
    """Return the sum of gap >> b, by blocks that stay in the cache."""
    return sum(int((gaps[i : i + BLOCK] >> b).sum(dtype=np.uint64)) for i in range(0, len(gaps), BLOCK))


def _pack_rice(gaps: golomb.Numbers, b: int, bits: int) -> bytes:
    k = len(gaps)
    unpacked = np.zeros(bits, np.uint8)
    low = unpacked[: k * b].reshape(k, b)
    for j in range(b):  # by columns: b vector operations
        low[:, j] = (gaps >> j) & 1
    ends = np.cumsum((gaps >> b).astype(np.int64) + 1) - 1
    unpacked[k * b + ends] = 1
    return np.packbits(unpacked, bitorder="little").tobytes()


def _unpack_rice(data: bytes | memoryview, b: int, n: int, k: int) -> Positions:
    unpacked = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    high = unpacked[k * b :].view(np.bool_)  # whose places are found ten times as fast as those of integers
    found = np.count_nonzero(high)  # before a word is made for each
    if found != k:
        raise errors.InvalidPositions(f"the Rice code ends {found} gaps, the header says {k}")
    ends = np.flatnonzero(high)
    if k and len(data) != _bytes(k * b + int(ends[-1]) + 1):
        raise errors.LengthMismatch("bytes are left over after the last gap of the Rice code")
    positions: Positions = ends  # in place from here: first the gaps
    positions[1:] -= ends[:-1] + 1
    positions <<= b
    low = unpacked[: k * b].reshape(k, b)
    for j in range(b):
        plane = low[:, j].astype(np.int64)
        plane <<= j
        positions |= plane
    positions += 1
    np.cumsum(positions, out=positions)
    positions -= 1
    if k and positions[-1] >= n:
        raise errors.InvalidPositions(f"the last position is {positions[-1]}, the vector has {n} entries")
    return positions


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
    there = np.zeros(n, np.uint8)
    there[positions] = 1
    return np.packbits(there, bitorder="little").tobytes()


def _unpack_bitmap(data: bytes | memoryview, n: int, k: int) -> Positions:
    there = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").view(np.bool_)
    found = np.count_nonzero(there)  # before a word is made for each
    if found != k or there[n:].any():
        raise errors.InvalidPositions(f"the bitmap marks {found} places, the header says {k} of {n}")
    return np.flatnonzero(there)


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
