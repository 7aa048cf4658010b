"""Exact values that are whole multiples of one power of two: changes of a model on a grid (`replica`).

The largest power of two that divides all of them is taken out; what is left is a sign and an integer, and the integers
are written as numbers by groups (`golomb`) above the least of them. Where all magnitudes are equal, as in one ternary
step, nothing but the signs is written. docs/reference/wire.md has the bits.

Values of another kind are rounded to multiples of 2^-31 of the power of two above the largest magnitude.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.coding import golomb
from fedpress.compression.tensors.layout import BLOCK, Vector

_HEAD = struct.Struct("<hI")  # exponent of the unit, least magnitude in units
_EQUAL = 1 << 14  # added to the exponent where all magnitudes are equal
_BITS = 24  # of the largest magnitude in units, at least
_MOST = 2**32 - 1


def pack(values: Vector) -> bytes:
    """Return unit, least magnitude, signs and integers.

    Args:
        values: Finite float32, shape (k,), or integers of less than 24 bits.

    >>> unpack(pack(np.array([0.5, -3, 0.75], np.float32)), 3)
    array([ 0.5 , -3.  ,  0.75], dtype=float32)
    >>> len(pack(np.full(800, -0.375, np.float32)))
    106
    """
    whole = plan(values)
    target = np.zeros(whole.length, np.uint8)
    whole.write(target)
    return target.tobytes()


class Plan(NamedTuple):
    """Values that are ready to be written.

    Attributes:
        length: Length in bytes.
        write: Writes them into zeros, uint8 (length,).
    """

    length: int
    write: Callable[[NDArray[np.uint8]], None]


def plan(values: Vector) -> Plan:
    """Prepare what `pack` returns.

    Args:
        values: As for `pack`.
    """
    if not len(values):
        return Plan(0, lambda target: None)
    blocks = [slice(start, start + BLOCK) for start in range(0, len(values), BLOCK)]
    bounds = [bound for block in blocks if (bound := _unit(_magnitudes(values[block]))) is not None]
    exact, largest = min((low for low, _ in bounds), default=0), max((high for _, high in bounds), default=0)
    exponent = max(exact, largest - 31)

    def units(start: int, stop: int, least: int = 0) -> golomb.Numbers:
        scaled = np.rint(np.ldexp(_magnitudes(values[start:stop]), -exponent)).astype(np.uint32)
        return np.subtract(scaled, np.uint32(least), out=scaled)

    ends = [(int(part.min()), int(part.max())) for block in blocks for part in [units(block.start, block.stop)]]
    least = min(low for low, _ in ends)
    split = _HEAD.size + -(-len(values) // 8)

    def write_signs(target: NDArray[np.uint8], exponent: int) -> None:
        target[: _HEAD.size] = np.frombuffer(_HEAD.pack(exponent, least), np.uint8)
        for block in blocks:  # of whole bytes, but for the last
            signs = np.packbits(np.signbit(_floats(values[block])), bitorder="little")
            first = _HEAD.size + block.start // 8
            target[first : first + len(signs)] = signs

    if all(end == (least, least) for end in ends):
        return Plan(split, lambda target: write_signs(target, exponent + _EQUAL))
    if len(blocks) == 1:
        groups = golomb.plan(units(0, BLOCK, least))
    else:
        groups = golomb.plan_of(lambda start, stop: units(start, stop, least), len(values))
    length = golomb.length(groups)

    def write(target: NDArray[np.uint8]) -> None:
        write_signs(target, exponent)
        if groups.long:
            golomb.write(groups, target[split:])
        else:
            target[split:] = np.frombuffer(golomb.pack(groups), np.uint8)

    return Plan(split + length, write)


def _floats(values: Vector) -> Vector:
    return values.astype(np.float32, copy=False)


def _magnitudes(values: Vector) -> NDArray[np.float64]:
    return np.abs(_floats(values)).astype(np.float64)


def _unit(magnitudes: NDArray[np.float64]) -> tuple[int, int] | None:
    """Return the exponents of the largest power of two that divides all `magnitudes`, and of one above them all.

    None where all of them are zero.
    """
    mantissas, exponents = np.frexp(magnitudes[magnitudes > 0])
    if not len(mantissas):
        return None
    integers = np.ldexp(mantissas, _BITS).astype(np.int64)  # whole, for what was a float32
    lowest = np.frexp((integers & -integers).astype(np.float64))[1] - 1
    return int((exponents - _BITS + lowest).min()), int(exponents.max())


def unpack(data: bytes | memoryview, k: int) -> Vector:
    """Return the k values that `pack` wrote; those of foreign bytes may be infinite.

    Args:
        data: All bytes of the values, at least `least(k)`.
        k: Number of values.

    Raises:
        InvalidValues: The integers cannot be read or reach 2^32, or bytes are left over.
    """
    if not k:
        return np.empty(0, np.float32)
    exponent, least = _HEAD.unpack_from(data)
    split = _HEAD.size + -(-k // 8)
    signs = np.frombuffer(data[_HEAD.size : split], np.uint8)
    if exponent >= _EQUAL // 2:
        if len(data) > split:
            raise errors.InvalidValues(f"{len(data) - split} bytes are left over behind equal magnitudes")
        patterns = _signs(signs, k)
        patterns ^= _patterns(np.full(1, least, np.uint32), exponent - _EQUAL)
        return patterns.view(np.float32)
    patterns = np.empty(0, np.uint32)
    try:
        for start, units in golomb.read(data[split:], k):
            if not start:  # checked as a whole, so that k is no lie
                patterns = np.empty(k, np.uint32)
            if int(units.max()) + least > _MOST:
                raise errors.InvalidValues("a magnitude reaches 2^32 units")
            units += np.uint32(least)
            part = patterns[start : start + len(units)]
            part[:] = _signs(signs[start // 8 : -(-(start + len(units)) // 8)], len(units))
            part ^= _patterns(units, exponent)
    except golomb.BitsError as error:
        raise errors.InvalidValues(f"the magnitudes cannot be read: {error}") from None
    return patterns.view(np.float32)


def _signs(packed: NDArray[np.uint8], count: int) -> golomb.Numbers:
    """Return the sign bits of float32 patterns, uint32 (count,)."""
    patterns = np.unpackbits(packed, count=count, bitorder="little").astype(np.uint32)
    patterns <<= np.uint32(31)
    return patterns


def _patterns(units: golomb.Numbers, exponent: int) -> golomb.Numbers:
    """Return the bits of units times 2^exponent as float32, uint32 like `units`."""
    magnitudes = units.astype(np.float64)
    with np.errstate(over="ignore"):  # the decoder refuses what is not finite
        np.ldexp(magnitudes, exponent, out=magnitudes)
        return magnitudes.astype(np.float32).view(np.uint32)


def least(k: int) -> int:
    """Return the least number of bytes that k values take.

    >>> least(100)
    19
    """
    return _HEAD.size + -(-k // 8) if k else 0
