"""The exact k largest magnitudes of a vector, in linear time on any data.

1. A sample gives a bound that a little more than k magnitudes probably reach.
2. One pass over blocks that stay in the cache collects those candidates. Where the vector is a sum (an update and
   the residual of error feedback), each block is added just before it is read: memory is what limits all of this.
3. The k-th largest among them is found digit by digit: bit patterns of magnitudes are ordered like the magnitudes, so
   three histograms of 11, 10 and 10 bits give all 31 bits of it (a radix select).

Where the bound was bad (the sample misled, or many magnitudes are equal), the histograms run over the whole vector
instead: slower by a constant, still linear. Comparison-based selection (`np.partition`) degrades on equal values,
and a threshold alone keeps more or fewer than k of them.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.vector import BLOCK, Vector

Magnitudes: TypeAlias = NDArray[np.uint32]
"""Bit patterns of float32 magnitudes: as integers 0 < subnormal < normal < infinity < NaN."""

SAMPLE = 1 << 14
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_DIGITS = ((20, 11), (10, 10), (0, 10))  # (shift, bits), from the top of the 31 bits
_FIRST_NOT_FINITE = 0x7F8  # the top digit of infinity; NaN lies above
_NOT_FINITE = "the update holds NaN or infinity, so nothing can be selected; did training diverge?"


def largest(vector: Vector, k: int, addend: Vector | None = None) -> NDArray[np.int64]:
    """Return the positions of the k entries of largest magnitude, rising; ties by lowest position, never a zero.

    Args:
        vector: float32, shape (n,), contiguous.
        k: At least 1; min(k, non-zeros) positions come back.
        addend: float32, shape (n,): added to `vector`, in place. Where this raises it may have been added in part.

    Raises:
        NonFiniteError: The vector holds NaN or infinity.

    >>> largest(np.array([3, -4, 0, 4, 4], np.float32), 2)
    array([1, 3])
    """
    if len(vector) > SAMPLE and k <= len(vector) // 8:
        room = 2 * k + BLOCK
        positions, magnitudes = _reaching(vector, addend, _bound(vector, addend, k), room)
        if k <= len(positions) <= room:
            return positions[_cut(lambda: [(0, magnitudes)], k)]
    elif addend is not None:
        add(vector, addend)
    return _cut(lambda: _blocks(vector), k)


def at_least(vector: Vector, bound: np.float32, addend: Vector | None = None) -> NDArray[np.int64]:
    """Return the positions of the entries whose magnitude is at least `bound`, rising, never a zero.

    Args:
        vector: float32, shape (n,), contiguous.
        bound: Not negative.
        addend: As for `largest`.

    Raises:
        NonFiniteError: The vector holds NaN or infinity.

    >>> at_least(np.array([3, -4, 0, 4, 4], np.float32), np.float32(4))
    array([1, 3, 4])
    """
    lowest = max(1, int(bound.view(np.uint32)))
    positions, magnitudes = _reaching(vector, addend, lowest, room=len(vector))
    if len(magnitudes) and int(magnitudes.max()) >> _DIGITS[0][0] >= _FIRST_NOT_FINITE:
        raise errors.NonFiniteError(_NOT_FINITE)
    return positions


def add(vector: Vector, addend: Vector) -> None:
    """Add in place; a sum that overflows becomes infinite, and selection refuses it."""
    with np.errstate(over="ignore", invalid="ignore"):
        np.add(vector, addend, out=vector)


def _blocks(vector: Vector) -> Iterator[tuple[int, Magnitudes]]:
    """Yield (start, magnitudes) of each block; the array is overwritten by the next one."""
    patterns = vector.view(np.uint32)
    buffer = np.empty(min(BLOCK, len(patterns)), np.uint32)
    for start in range(0, len(patterns), BLOCK):
        block = patterns[start : start + BLOCK]
        yield start, np.bitwise_and(block, _MAGNITUDE, out=buffer[: len(block)])


def _bound(vector: Vector, addend: Vector | None, k: int) -> int:
    """Return a magnitude that probably at least k entries reach, and few more."""
    step = max(16, len(vector) // SAMPLE)  # of a short vector fewer are drawn: candidates are cheap there
    drawn = vector[::step].copy()
    if addend is not None:
        add(drawn, addend[::step])
    sample = drawn.view(np.uint32) & _MAGNITUDE
    expected = k * len(sample) / len(vector)
    rank = int(expected + 4 * expected**0.5) + 8  # four standard deviations of the binomial, and some for small k
    return _kth(lambda: [(0, sample)], rank, _DIGITS[:-1])[0]  # rounded down by less than 0.02 %


def _reaching(vector: Vector, addend: Vector | None, bound: int, room: int) -> tuple[NDArray[np.int64], Magnitudes]:
    """Return the positions and magnitudes of the entries that reach `bound`: all, or more than `room` of them.

    `addend` is added to the whole vector, block by block, just before the block is read.
    """
    positions, magnitudes, found = [np.empty(0, np.int64)], [np.empty(0, np.uint32)], 0
    patterns = vector.view(np.uint32)
    buffer, reaching = np.empty(min(BLOCK, len(vector)), np.uint32), np.empty(min(BLOCK, len(vector)), np.bool_)
    for start in range(0, len(vector), BLOCK):
        block = slice(start, start + BLOCK)
        if addend is not None:
            add(vector[block], addend[block])
        if found > room:  # nothing more to find, but the rest is still to be added
            continue
        here = patterns[block]
        size = len(here)
        masked = np.bitwise_and(here, _MAGNITUDE, out=buffer[:size])
        places = np.flatnonzero(np.greater_equal(masked, np.uint32(bound), out=reaching[:size]))
        magnitudes.append(masked[places])
        places += start
        positions.append(places)
        found += len(places)
    return np.concatenate(positions), np.concatenate(magnitudes)


def _kth(
    blocks: Callable[[], Iterable[tuple[int, Magnitudes]]], k: int, digits: tuple[tuple[int, int], ...] = _DIGITS
) -> tuple[int, int]:
    """Return the k-th largest magnitude, and how many entries equal to it are among the k largest.

    With fewer digits both are about the magnitudes without their last bits. With fewer than k non-zeros the answer is
    (1, k): every non-zero is wanted.
    """
    prefix, wanted = 0, k
    for level, (shift, bits) in enumerate(digits):
        counts = np.zeros(1 << bits, np.int64)
        for _, block in blocks():
            if level:
                block = block[block >> np.uint32(shift + bits) == prefix]
            parts = block >> np.uint32(shift)
            if level:
                parts &= np.uint32((1 << bits) - 1)
            counts += np.bincount(parts, minlength=1 << bits)
        if not level and counts[_FIRST_NOT_FINITE:].any():
            raise errors.NonFiniteError(_NOT_FINITE)
        reached = np.cumsum(counts[::-1])  # entries whose digit is at least the last, the last but one, ...
        step = int(np.searchsorted(reached, wanted))
        if step == 1 << bits:
            return 1, k
        wanted -= int(reached[step - 1]) if step else 0
        prefix = prefix << bits | ((1 << bits) - 1 - step)
    return (prefix << digits[-1][0], wanted) if prefix else (1, k)


def _cut(blocks: Callable[[], Iterable[tuple[int, Magnitudes]]], k: int) -> NDArray[np.int64]:
    """Return where the k largest magnitudes stand in the blocks, rising."""
    bound, ties = _kth(blocks, k)
    parts = [np.empty(0, np.int64)]
    for start, block in blocks():
        places = np.flatnonzero(block >= np.uint32(bound))
        equal = np.flatnonzero(block[places] == bound)
        if len(equal) > ties:
            places = np.delete(places, equal[ties:])
        ties -= min(ties, len(equal))
        places += start
        parts.append(places)
    return np.concatenate(parts)
