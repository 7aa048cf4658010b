"""The exact k largest magnitudes of a vector, in linear time on any data.

1. A sample gives a bound that a little more than k magnitudes probably reach.
2. One pass over blocks that stay in the cache collects those candidates. Where the vector is a sum (an update and
   the residual of error feedback), each block is added just before it is read: memory is what limits all of this.
3. The k-th largest among them is the bound that exactly k reach, but for ties.

Where the first bound was bad (the sample misled, or many magnitudes are equal), the k-th largest of the whole vector is
found digit by digit instead: bit patterns of magnitudes are ordered like the magnitudes, so three histograms of 11, 10
and 10 bits give all 31 bits of it (a radix select). Slower by a constant, still linear, and no copy of the vector is
made. A threshold alone would keep more or fewer than k of equal values.
"""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.tensors.layout import BLOCK, Vector

Magnitudes: TypeAlias = NDArray[np.uint32]
"""Bit patterns of float32 magnitudes: as integers 0 < subnormal < normal < infinity < NaN."""

Part: TypeAlias = tuple[NDArray[np.int64], Magnitudes]
"""Positions, strictly increasing, and the magnitudes of their entries."""

SAMPLE = 1 << 14
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_WINDOW = 4 * BLOCK  # entries whose places are looked up together
_ALL = np.uint64(0x0101010101010101)  # eight times true
_DIGITS = ((20, 11), (10, 10), (0, 10))  # (shift, bits), from the top of the 31 bits
_LEAST = np.float32(2**-149)  # above zero
_INFINITY = np.uint32(0x7F800000)
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
        candidates = list(_reaching(vector, addend, _bound(vector, addend, k), room))
        magnitudes = np.concatenate([np.empty(0, np.uint32), *(part for _, part in candidates)])
        if k <= len(magnitudes) <= room:
            _check(magnitudes)
            bound = int(np.partition(magnitudes, len(magnitudes) - k)[len(magnitudes) - k])
            return _cut(candidates, bound, k - int(np.count_nonzero(magnitudes > bound)), k)
    elif addend is not None:
        add(vector, addend)
    return _cut(_parts(vector), *_kth(vector, k), k)


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
    positions = [np.empty(0, np.int64)]
    for places, magnitudes in _reaching(vector, addend, max(bound, _LEAST), room=len(vector)):
        _check(magnitudes)
        positions.append(places)
    return np.concatenate(positions)


def add(vector: Vector, addend: Vector) -> None:
    """Add in place; a sum that overflows becomes infinite, which selection refuses.

    Args:
        vector: float32, shape (n,), overwritten by the sum.
        addend: float32, shape (n,).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        np.add(vector, addend, out=vector)


def _check(magnitudes: Magnitudes) -> None:
    if len(magnitudes) and magnitudes.max() >= _INFINITY:
        raise errors.NonFiniteError(_NOT_FINITE)


def _bound(vector: Vector, addend: Vector | None, k: int) -> np.float32:
    """Return a magnitude above 0 that probably at least k entries reach, and few more."""
    step = max(16, len(vector) // SAMPLE)  # of a short vector fewer are drawn: candidates are cheap there
    drawn = vector[::step].copy()
    if addend is not None:
        add(drawn, addend[::step])
    sample = drawn.view(np.uint32) & _MAGNITUDE
    expected = k * len(sample) / len(vector)
    rank = int(expected + 4 * expected**0.5) + 8  # four standard deviations of the binomial, and some for small k
    bound: np.float32 = np.partition(sample, len(sample) - rank)[len(sample) - rank].view(np.float32)
    return bound if _LEAST <= bound < np.inf else _LEAST  # not finite: any bound will find it


def _reaching(vector: Vector, addend: Vector | None, bound: np.float32, room: int) -> Iterator[Part]:
    """Yield what does not lie between -bound and bound, NaN included: all of it, or more than `room` entries.

    `addend` is added to the whole vector, block by block, just before the block is read.
    """
    yielded = 0
    # Padded to whole words; what is behind the end of the vector stays inside.
    inside = np.ones(min(_WINDOW, -(-len(vector) // 8) * 8), np.bool_)
    above = np.empty(min(BLOCK, len(vector)), np.bool_)
    for first in range(0, len(vector), _WINDOW):
        window = vector[first : first + _WINDOW]
        for start in range(0, len(window), BLOCK):
            block = window[start : start + BLOCK]
            if addend is not None:
                add(block, addend[first + start : first + start + len(block)])
            if yielded > room:  # nothing more to find, but the rest is still to be added
                continue
            here = inside[start : start + len(block)]
            np.less(block, bound, out=here)
            here &= np.greater(block, -bound, out=above[: len(block)])
        if yielded > room:
            continue
        inside[len(window) :] = True
        # Eight entries at a time, since nearly all are inside.
        words = np.flatnonzero(inside.view(np.uint64) != _ALL)
        outside = np.flatnonzero(~inside.view(np.uint64)[words].view(np.bool_))
        places = words[outside >> 3]
        places <<= 3
        outside &= 7
        places += outside
        magnitudes = window[places].view(np.uint32)
        magnitudes &= _MAGNITUDE
        places += first
        yielded += len(places)
        yield places, magnitudes


def _kth(vector: Vector, k: int) -> tuple[int, int]:
    """Return the k-th largest magnitude, and how many entries equal to it are among the k largest.

    With fewer than k non-zeros the answer is (1, k): every non-zero is wanted.
    """
    prefix, wanted = 0, k
    for level, (shift, bits) in enumerate(_DIGITS):
        counts = np.zeros(1 << bits, np.int64)
        for block in _magnitudes(vector):
            if level:
                block = block[block >> np.uint32(shift + bits) == prefix]
            parts = block >> np.uint32(shift)
            if level:
                parts &= np.uint32((1 << bits) - 1)
            counts += np.bincount(parts, minlength=1 << bits)
        if not level and counts[int(_INFINITY) >> shift :].any():
            raise errors.NonFiniteError(_NOT_FINITE)
        reached = np.cumsum(counts[::-1])  # entries whose digit is at least the last, the last but one, ...
        step = int(np.searchsorted(reached, wanted))
        if step == 1 << bits:
            return 1, k
        wanted -= int(reached[step - 1]) if step else 0
        prefix = prefix << bits | ((1 << bits) - 1 - step)
    return (prefix, wanted) if prefix else (1, k)


def _cut(parts: Iterable[Part], bound: int, ties: int, most: int) -> NDArray[np.int64]:
    """Return the places of all magnitudes above `bound`, and of the first `ties` equal to it: at most `most`."""
    positions, count = np.empty(most, np.int64), 0
    for places, magnitudes in parts:
        chosen = magnitudes >= bound
        equal = np.flatnonzero(magnitudes == bound)
        chosen[equal[ties:]] = False
        ties -= min(ties, len(equal))
        part = places[np.flatnonzero(chosen)]
        positions[count : count + len(part)] = part
        count += len(part)
    return positions[:count]


def _magnitudes(vector: Vector) -> Iterator[Magnitudes]:
    """Yield the magnitudes of each block; the array is overwritten by the next one."""
    patterns = vector.view(np.uint32)
    buffer = np.empty(min(BLOCK, len(patterns)), np.uint32)
    for start in range(0, len(patterns), BLOCK):
        block = patterns[start : start + BLOCK]
        yield np.bitwise_and(block, _MAGNITUDE, out=buffer[: len(block)])


def _parts(vector: Vector) -> Iterator[Part]:
    """Yield all of the vector by blocks; the magnitudes are overwritten by the next one."""
    start = 0
    for magnitudes in _magnitudes(vector):
        yield np.arange(start, start + len(magnitudes)), magnitudes
        start += len(magnitudes)
