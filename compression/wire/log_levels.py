"""log4, log6, log8: a sign and 3, 5 or 7 bits of logarithm for each value, on the float's own bits.

No logarithm is taken: the bit pattern of a magnitude rises with the magnitude, and without its last bits it is a grid
that is linear within an octave and the same in every octave, so a logarithmic quantizer is a shift. The levels span 1,
2, 4 or 8 octaves, which holds what the largest entries of an update span; each group of 256 values says where its
levels begin and how fine they are. docs/reference/wire.md has the bits.
"""

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.coding.bits import codes_length, pack_codes, unpack_codes
from fedpress.compression.tensors.layout import Vector

GROUP = 256
_COARSE = 20
"""The lowest level is a multiple of 2^20, or of 2^shift where that is more: 11 bits hold it, whatever the format."""
_INFINITY = 0x7F800000
_MODES = ((1, False), (2, False), (2, True), (3, True))
"""(octaves as a power of two, whether the lowest level is zero) that the encoder tries. With a zero no entry is further
from the value than zero is, so that the best of the four contracts, whatever the data."""


def pack(values: Vector, bits: int) -> bytes:
    """Return a u16 for each group of 256, then a code for each value.

    Args:
        values: Finite, shape (k,).
        bits: Bits of a code, its sign included: 4, 6 or 8.

    >>> unpack(pack(np.array([1, -3, 0.26], np.float32), 4), 3, 4)
    array([ 1.  , -3.  ,  0.25], dtype=float32)
    >>> unpack(pack(np.array([1, -3, 0.26], np.float32), 8), 3, 8)
    array([ 1.       , -3.       ,  0.2578125], dtype=float32)
    """
    if not len(values):
        return b""
    k = len(values)
    filled = np.zeros(-(-k // GROUP) * GROUP, np.float32)
    filled[:k] = np.abs(values)
    rows = filled.reshape(-1, GROUP)
    least = np.full(len(rows), np.inf)
    heads = np.empty(len(rows), "<u2")
    codes = np.empty(rows.shape, np.uint8)
    for span, zero in _MODES:
        shift = _finest(bits) + span
        low, levels = _quantize(rows.view(np.uint32), shift, zero, 1 << bits - 1)
        missed = _grid(low, levels, shift, zero)
        missed -= rows
        # Float32 squares overflow above 2^64, so by groups in units of their peaks; a peak of zero misses nothing.
        missed /= np.maximum(rows.max(axis=1, keepdims=True), np.float32(2.0**-149))
        missed[-1, k - GROUP * (len(rows) - 1) :] = 0
        errors = np.einsum("ij,ij->i", missed, missed)
        better = errors < least
        least[better] = errors[better]
        heads[better] = low[better] >> _unit(shift) | span << 11 | zero << 13
        codes[better] = levels[better]
    flat = codes.reshape(-1)[:k]
    flat |= np.signbit(values).astype(np.uint8) << bits - 1
    return heads.tobytes() + pack_codes(flat, bits)


def unpack(data: bytes | memoryview, k: int, bits: int) -> Vector:
    """Return the k values that `pack` wrote; those of foreign bytes may be infinite.

    Args:
        data: `length(k, bits)` bytes.
        k: Number of values.
        bits: Bits of a code: 4, 6 or 8.
    """
    groups, half = -(-k // GROUP), 1 << bits - 1
    heads = np.frombuffer(data, "<u2", groups).astype(np.uint64)
    codes = unpack_codes(memoryview(data)[2 * groups :], k, bits)
    shifts, zeros = _finest(bits) + (heads >> 11 & 3), heads >> 13 & 1
    low = (heads & 0x7FF) << np.maximum(shifts, _COARSE)
    # A group has at most 2^bits different values: a table, and one look-up for each value.
    table = np.minimum(low[:, None] + (np.arange(half, dtype=np.uint64) << shifts[:, None]), _INFINITY)
    table[:, 0] *= 1 - zeros
    magnitudes = table.astype(np.uint32).view(np.float32)
    signed = np.concatenate([magnitudes, -magnitudes], axis=1).reshape(-1)
    values: Vector = signed[codes + 2 * half * (np.arange(k) // GROUP)]
    return values


def length(k: int, bits: int) -> int:
    """Return the bytes that k values take.

    Args:
        k: Number of values.
        bits: Bits of a code.

    >>> length(257, 4), length(257, 6)
    (133, 197)
    """
    return 2 * -(-k // GROUP) + codes_length(k, bits)


def _finest(bits: int) -> int:
    """Return the shift at which the levels span one octave, 2^23 patterns."""
    return 24 - bits


def _unit(shift: int) -> int:
    return max(shift, _COARSE)


def _quantize(
    rows: NDArray[np.uint32], shift: int, zero: bool, count: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Return the bit pattern of each group's lowest level, and the level of each value, 0 to count - 1."""
    # To the nearest level; the highest is finite.
    nearest = np.minimum((rows + np.uint32(1 << shift >> 1)) >> np.uint32(shift), np.uint32((_INFINITY - 1) >> shift))
    coarser = _unit(shift) - shift  # number of low bits that are zero in the lowest level's number
    below = np.maximum(nearest.max(axis=1), count - 1) - np.uint32(count - 1)
    first = (below + np.uint32((1 << coarser) - 1)) >> np.uint32(coarser) << np.uint32(coarser)
    floor = first[:, None]
    levels = np.maximum(nearest, floor) - floor
    low = first << np.uint32(shift)
    if zero:
        # Level 0 stands for zero, so a value below level 1 goes to the nearer of the two.
        lowest = (low[:, None] + np.uint32(1 << shift)).view(np.float32)
        levels = np.where(levels > 0, levels, rows.view(np.float32) > lowest / 2)
    return low, levels.astype(np.uint8)


def _grid(low: NDArray[np.uint32], levels: NDArray[np.uint8], shift: int, zero: bool) -> NDArray[np.float32]:
    magnitudes = (low[:, None] + (levels.astype(np.uint32) << np.uint32(shift))).view(np.float32)
    return np.where(levels > 0, magnitudes, np.float32(0)) if zero else magnitudes
