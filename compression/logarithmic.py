"""log4: a sign and three bits of logarithm for each value, on the float's own bits; no logarithm is taken.

The bit pattern of a magnitude rises with the magnitude, and without its last bits it is a grid that is linear within
an octave and the same in every octave: a logarithmic quantiser is a shift. Eight levels of half an octave span what
the largest entries of an update span; each group of 256 values says where its levels begin and how fine they are.
docs/wire.md has the bits.
"""

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.vector import Vector

GROUP = 256
LEVELS = 8
_FINEST = 20  # the shift that the header's two bits count from: eight levels an octave
_INFINITY = 0x7F800000
_MODES = ((21, False), (22, False), (22, True), (23, True))
"""(shift, whether the lowest level is zero) that the encoder tries. With a zero no entry is further from what was asked
than zero is, so that the best of the four contracts, whatever the data."""


def pack(values: Vector) -> bytes:
    """Return a u16 for each group of 256, then a nibble for each value.

    >>> unpack(pack(np.array([1, -3, 0.26], np.float32)), 3)
    array([ 1.  , -3.  ,  0.25], dtype=float32)
    """
    if not len(values):
        return b""
    k = len(values)
    filled = np.zeros(-(-k // GROUP) * GROUP, np.float32)
    filled[:k] = np.abs(values)
    rows = filled.reshape(-1, GROUP)
    least = np.full(len(rows), np.inf)
    heads = np.empty(len(rows), "<u2")
    nibbles = np.empty(rows.shape, np.uint8)
    for shift, zero in _MODES:
        low, levels = _quantise(rows.view(np.uint32), shift, zero)
        missed = _grid(low, levels, shift, zero)
        missed -= rows
        # Float32 squares overflow above 2^64, so by groups in units of their peaks; a peak of zero misses nothing.
        missed /= np.maximum(rows.max(axis=1, keepdims=True), np.float32(2.0**-149))
        missed[-1, k - GROUP * (len(rows) - 1) :] = 0
        errors = np.einsum("ij,ij->i", missed, missed)
        better = errors < least
        least[better] = errors[better]
        heads[better] = low[better] | (shift - _FINEST) << 11 | zero << 13
        nibbles[better] = levels[better]
    flat = nibbles.reshape(-1)[:k]
    flat |= np.signbit(values).astype(np.uint8) << 3
    return heads.tobytes() + pack_nibbles(flat)


def unpack(data: bytes | memoryview, k: int) -> Vector:
    """Return the k values that `pack` wrote; what they say may be infinite or NaN."""
    groups = -(-k // GROUP)
    heads = np.frombuffer(data, "<u2", groups).astype(np.uint32)
    nibbles = unpack_nibbles(data[2 * groups :], k)
    low, shifts, zeros = heads & 0x7FF, _FINEST + (heads >> 11 & 3), heads >> 13 & 1
    # A group says sixteen values at most: a table, and one look-up for each value.
    table = (low[:, None] + np.arange(LEVELS, dtype=np.uint32)).astype(np.uint64) << shifts[:, None].astype(np.uint64)
    table = np.minimum(table, _INFINITY)
    table[:, 0] *= 1 - zeros
    magnitudes = table.astype(np.uint32).view(np.float32)
    signed = np.concatenate([magnitudes, -magnitudes], axis=1).reshape(-1)
    values: Vector = signed[nibbles + 2 * LEVELS * (np.arange(k) // GROUP)]
    return values


def length(k: int) -> int:
    """Return the bytes that k values take.

    >>> length(257)
    133
    """
    return 2 * -(-k // GROUP) + -(-k // 2)


def _quantise(rows: NDArray[np.uint32], shift: int, zero: bool) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Return the index of each group's lowest level on the grid, and the level of each value, 0 to 7."""
    # To the nearest level; the highest is finite.
    nearest = np.minimum((rows + np.uint32(1 << shift >> 1)) >> np.uint32(shift), np.uint32((_INFINITY - 1) >> shift))
    low = np.maximum(nearest.max(axis=1), LEVELS - 1) - np.uint32(LEVELS - 1)
    floor = low[:, None]
    levels = np.maximum(nearest, floor) - floor
    if zero:
        # Level 0 says zero, so what lies below level 1 goes to the nearer of the two.
        first = ((floor + np.uint32(1)) << np.uint32(shift)).view(np.float32)
        levels = np.where(levels > 0, levels, rows.view(np.float32) > first / 2)
    return low, levels.astype(np.uint8)


def _grid(low: NDArray[np.uint32], levels: NDArray[np.uint8], shift: int, zero: bool) -> NDArray[np.float32]:
    magnitudes = ((low[:, None] + levels) << np.uint32(shift)).view(np.float32)
    return np.where(levels > 0, magnitudes, np.float32(0)) if zero else magnitudes


def pack_nibbles(nibbles: NDArray[np.uint8]) -> bytes:
    """Return two numbers below 16 in each byte, the first in its lower half.

    >>> pack_nibbles(np.array([1, 2, 15], np.uint8)).hex()
    '210f'
    """
    filled = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
    return (filled[::2] | filled[1::2] << 4).tobytes()


def unpack_nibbles(data: bytes | memoryview, k: int) -> NDArray[np.uint8]:
    """Return the k numbers that `pack_nibbles` wrote.

    >>> unpack_nibbles(b"\\x21\\x0f", 3)
    array([ 1,  2, 15], dtype=uint8)
    """
    packed = np.frombuffer(data, np.uint8, -(-k // 2))
    nibbles = np.empty((len(packed), 2), np.uint8)
    nibbles[:, 0] = packed & 15
    nibbles[:, 1] = packed >> 4
    return nibbles.reshape(-1)[:k]
