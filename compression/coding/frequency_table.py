"""Frequency tables: the distribution of a quantized tensor's codes in a few bytes, for `rans` on both sides.

Codes of trained weights are spread smoothly around zero, so their distribution need not be written code by code (256
numbers would be 5 % of ten thousand int8 weights): the logarithm of the density at some magnitudes is enough, and a
straight line between them. Up to magnitude 8 each has its own number, so that for 4 bits and fewer nothing is smoothed.

Layout of a table, one byte each:

* the largest magnitude, 0 to 127; plus 128 where -m comes as often as m;
* for 0 and each further knot: minus log2 of the density in sixteenths, 0 to 254; 255 where that code never comes;
* where the sides differ, the same for the negative ones.

All is integer arithmetic from there, so that every machine gets the same frequencies.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.coding import rans
from fedpress.compression.coding.rans import CodeError, Frequencies

MAX_CODE = 127
ABSENT = 255
_SYMMETRIC = 128
_FINENESS = 16  # levels in a power of two
_KNOTS = np.array([*range(9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 120, 124, 126, 127])
_WEIGHTS = np.array([round(2 ** (39 - level / _FINENESS)) for level in range(_FINENESS)], np.int64)
"""2^39 and downwards by sixteenths of an octave, as whole numbers."""
_STEPS = (4, 1)


class Table(NamedTuple):
    """A table and the frequencies that follow from it.

    Attributes:
        data: The bytes of the table.
        frequencies: Frequencies of the codes -top, ..., 0, ..., top.
        top: The largest magnitude.
    """

    data: bytes
    frequencies: Frequencies
    top: int


def fit(codes: NDArray[np.int64]) -> Table:
    """Return the table with which `codes` take the fewest bytes, its own included, as a local search finds it.

    Args:
        codes: -127 to 127, shape (n,).

    >>> table = fit(np.array([0, 0, 0, 0, 1, -1]))
    >>> table.data.hex(), table.frequencies.tolist()
    ('810020', [2731, 10922, 2731])
    """
    top = int(np.abs(codes).max(initial=0))
    histogram = np.bincount(codes + top, minlength=2 * top + 1)
    if not top:
        return read(bytes([_SYMMETRIC, 0]))[0]
    up, down = histogram[top:], histogram[top::-1]
    both = up + down
    both[0] = up[0]
    alike = _settled(_Shape(top, True), _levels(both, 2), histogram)
    apart = _settled(_Shape(top, False), np.concatenate([_levels(up, 1), _levels(down, 1)[1:]]), histogram)
    return min(alike, apart, key=lambda table: 8 * len(table.data) + rans.cost(histogram, table.frequencies))


def read(data: bytes | memoryview) -> tuple[Table, int]:
    """Return the table at the beginning of `data` and its length in bytes.

    Raises:
        CodeError: The bytes end within the table, or it has no code at all.
    """
    if not len(data):
        raise CodeError("a table of codes is missing")
    shape = _Shape(data[0] & ~_SYMMETRIC, bool(data[0] & _SYMMETRIC))
    levels = np.frombuffer(data, np.uint8, -1, 1)[: shape.count].astype(np.int64)
    if len(levels) < shape.count:
        raise CodeError(f"a table of codes up to {shape.top} takes {shape.count + 1} bytes, there are {len(data)}")
    if (levels == ABSENT).all():
        raise CodeError("a table says of every code that it never comes")
    return Table(bytes(data[: shape.count + 1]), shape.frequencies(levels), shape.top), shape.count + 1


class _Shape:
    """How the levels of a table become frequencies, for a largest magnitude."""

    def __init__(self, top: int, symmetric: bool) -> None:
        self.top, self.symmetric = top, symmetric
        knots = _knots(top)
        self.count = len(knots) if symmetric else 2 * len(knots) - 1
        magnitudes = np.arange(top + 1)
        right = np.searchsorted(knots, magnitudes)
        left = np.maximum(right - 1, 0)
        # Of every code: the places of two levels, and how far it is from the other one's knot.
        negative = right[:0:-1]
        shift = 0 if symmetric else len(knots) - 1
        self.right = np.concatenate([negative + shift, right])
        below = left[:0:-1]
        self.left = np.concatenate([np.where(below > 0, below + shift, 0), left])
        wide = np.maximum(knots[right] - knots[left], 1)
        near = np.where(right > left, magnitudes - knots[left], 1)
        self.wide, self.near = (np.concatenate([part[:0:-1], part]) for part in (wide, near))
        self.exact = knots[right] == magnitudes
        self.exact = np.concatenate([self.exact[:0:-1], self.exact])

    def frequencies(self, levels: NDArray[np.int64]) -> Frequencies:
        present = np.minimum(levels, ABSENT - 1)
        between = (present[self.left] * (self.wide - self.near) + present[self.right] * self.near) // self.wide
        weights = _WEIGHTS[between % _FINENESS] >> (between // _FINENESS)
        weights[self.exact & (levels[self.right] == ABSENT)] = 0
        occurring = weights > 0
        frequencies: Frequencies = weights * (rans.TOTAL - int(np.count_nonzero(occurring))) // weights.sum()
        frequencies += occurring
        frequencies[int(np.argmax(weights))] += rans.TOTAL - int(frequencies.sum())
        return frequencies


def _knots(top: int) -> NDArray[np.int64]:
    """Return the magnitudes whose density is written: those of `_KNOTS` below the largest, and the largest."""
    return np.append(_KNOTS[_KNOTS < top], top)


def _levels(counts: NDArray[np.int64], sides: int) -> NDArray[np.int64]:
    """Return a first guess for one side: the density around each knot, with `sides` codes a magnitude but one for 0."""
    knots = _knots(len(counts) - 1)
    edges = np.concatenate([[0], (knots[:-1] + knots[1:] + 1) // 2, [len(counts)]])
    sums = np.concatenate([[0], np.cumsum(counts)])
    density = (sums[edges[1:]] - sums[edges[:-1]]) / np.diff(edges)
    density[1:] /= sides
    with np.errstate(divide="ignore"):
        levels = -_FINENESS * np.log2(density / max(density.max(), 1e-9))
    exact = np.diff(edges) == 1
    return np.where(exact & (density == 0), ABSENT, np.clip(np.rint(levels), 0, ABSENT - 1)).astype(np.int64)


def _settled(shape: _Shape, levels: NDArray[np.int64], histogram: NDArray[np.int64]) -> Table:
    """Return the table after moving each level up and down as long as that saves bits."""
    least = rans.cost(histogram, shape.frequencies(levels))
    for step in _STEPS:
        for place in np.flatnonzero(levels != ABSENT):
            for move in (-step, step):
                while 0 <= levels[place] + move < ABSENT:
                    levels[place] += move
                    bits = rans.cost(histogram, shape.frequencies(levels))
                    if bits >= least - 1e-9:
                        levels[place] -= move
                        break
                    least = bits
    head = shape.top | (_SYMMETRIC if shape.symmetric else 0)
    return read(bytes([head]) + levels.astype(np.uint8).tobytes())[0]
