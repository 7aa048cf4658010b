"""The Golomb-Rice code of gaps between positions: low bits as they are, high parts in unary.

Golomb 1966, "Run-length encodings"; Rice and Plaunt 1971, "Adaptive variable-length coding". The low bits of all gaps
come first, then all high parts, so that both are written and read by vector operations; the bits are in
docs/reference/wire.md.
"""

import numpy as np

from fedpress.compression import errors
from fedpress.compression.coding import golomb
from fedpress.compression.tensors.layout import BLOCK
from fedpress.compression.tensors.mask import Positions

MAX_LOW_BITS = 31


def best(gaps: golomb.Numbers) -> tuple[int, int]:
    """Return the number of low bits with the least cost, and that cost in bits; (0, 0) for no gaps.

    cost(b) = k (b + 1) + sum(gap >> b). It is convex in b: cost(b + 1) - cost(b) = k - sum(ceil((gap >> b) / 2)), and
    that sum falls with b. Once 2^b is above the mean gap it is less than k, so the best b lies below: walk down.

    >>> best(np.array([3, 6, 1], np.uint32))
    (1, 10)
    """
    k = len(gaps)
    if not k:
        return 0, 0

    def cost(b: int) -> int:
        return k * (b + 1) + _sum(gaps, b)

    b = min(MAX_LOW_BITS, (_sum(gaps, 0) // k).bit_length())
    least = cost(b)
    while b > 0 and (lower := cost(b - 1)) <= least:
        b, least = b - 1, lower
    return b, least


def _sum(gaps: golomb.Numbers, b: int) -> int:
    """Return the sum of gap >> b, by blocks that stay in the cache."""
    return sum(int((gaps[i : i + BLOCK] >> b).sum(dtype=np.uint64)) for i in range(0, len(gaps), BLOCK))


def length(b: int, n: int, k: int) -> tuple[int, int]:
    """Return the least and the greatest number of bytes that k positions below n take.

    Args:
        b: Low bits of a gap.
        n: Size of the vector.
        k: Number of positions.

    >>> length(3, 100, 5)
    (3, 4)
    """
    # k low parts and k ones that end the high parts; the high parts sum to at most (n - k) / 2^b.
    least = k * (b + 1)
    most = least + ((n - k) >> b) if k else 0
    return -(-least // 8), -(-most // 8)


def pack(gaps: golomb.Numbers, b: int, bits: int) -> bytes:
    """Return the gaps as bytes.

    Args:
        gaps: uint32, shape (k,): number of places between a position and the one before.
        b: Low bits of a gap, from `best`.
        bits: Their cost, from `best`.

    >>> pack(np.array([3, 6, 1], np.uint32), 1, 10).hex()
    '1503'
    """
    k = len(gaps)
    unpacked = np.zeros(bits, np.uint8)
    low = unpacked[: k * b].reshape(k, b)
    for j in range(b):  # by columns: b vector operations
        low[:, j] = (gaps >> j) & 1
    ends = np.cumsum((gaps >> b).astype(np.int64) + 1) - 1
    unpacked[k * b + ends] = 1
    return np.packbits(unpacked, bitorder="little").tobytes()


def unpack(data: bytes | memoryview, b: int, n: int, k: int) -> Positions:
    """Return the positions whose gaps `pack` wrote: int64, shape (k,), strictly increasing and below n.

    Args:
        data: The bytes; their number must lie within `length(b, n, k)`.
        b: Low bits of a gap.
        n: Size of the vector.
        k: Number of positions.

    Raises:
        InvalidPositions: They leave [0, n), or are not k.
        LengthMismatch: Bytes are left over.

    >>> unpack(bytes.fromhex("1503"), 1, 100, 3)
    array([ 3, 10, 12])
    """
    unpacked = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    high = unpacked[k * b :].view(np.bool_)  # whose places are found ten times as fast as those of integers
    ended = np.count_nonzero(high)  # before a word is made for each
    if ended != k:
        raise errors.InvalidPositions(f"the Rice code ends {ended} gaps, the header says {k}")
    ends = np.flatnonzero(high)
    if k and len(data) != -(-(k * b + int(ends[-1]) + 1) // 8):
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
