"""Exact values that are whole multiples of one power of two: changes of a model on a grid (`replica`).

The largest power of two that divides all of them is taken out; what is left is a sign and an integer, and the integers
are written as numbers by groups (`golomb`) above the least of them. Where all magnitudes are equal, as in one ternary
step, nothing but the signs is written. docs/reference/wire.md has the bits.

Values of another kind are rounded to multiples of 2^-31 of the power of two above the largest magnitude.
"""

import struct

import numpy as np

from fedpress.compression import errors
from fedpress.compression.coding import golomb
from fedpress.compression.tensors.layout import Vector

_HEAD = struct.Struct("<hI")  # exponent of the unit, least magnitude in units
_EQUAL = 1 << 14  # added to the exponent where all magnitudes are equal
_BITS = 24  # of the largest magnitude in units, at least
_MOST = 2**32 - 1


def pack(values: Vector) -> bytes:
    """Return unit, least magnitude, signs and integers.

    Args:
        values: Finite float32, shape (k,).

    >>> unpack(pack(np.array([0.5, -3, 0.75], np.float32)), 3)
    array([ 0.5 , -3.  ,  0.75], dtype=float32)
    >>> len(pack(np.full(800, -0.375, np.float32)))
    106
    """
    if not len(values):
        return b""
    magnitudes = np.abs(values).astype(np.float64)
    exponent = _unit(magnitudes)
    units = np.rint(np.ldexp(magnitudes, -exponent)).astype(np.uint32)
    least = int(units.min())
    units -= np.uint32(least)
    signs = np.packbits(np.signbit(values), bitorder="little").tobytes()
    if not units.any():
        return _HEAD.pack(exponent + _EQUAL, least) + signs
    return _HEAD.pack(exponent, least) + signs + golomb.pack(golomb.plan(units))


def _unit(magnitudes: np.ndarray) -> int:
    """Return the exponent of the largest power of two that divides all of float64 `magnitudes`, or nearly all."""
    mantissas, exponents = np.frexp(magnitudes[magnitudes > 0])
    if not len(mantissas):
        return 0
    integers = np.ldexp(mantissas, _BITS).astype(np.int64)  # whole, for what was a float32
    lowest = np.frexp((integers & -integers).astype(np.float64))[1] - 1
    exact = int((exponents - _BITS + lowest).min())
    return max(exact, int(exponents.max()) - 31)


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
    negative = np.unpackbits(np.frombuffer(data[_HEAD.size : split], np.uint8), count=k, bitorder="little")
    patterns = negative.astype(np.uint32)
    patterns <<= np.uint32(31)
    if exponent >= _EQUAL // 2:
        if len(data) > split:
            raise errors.InvalidValues(f"{len(data) - split} bytes are left over behind equal magnitudes")
        patterns ^= _patterns(np.full(1, least, np.uint32), exponent - _EQUAL)
        return patterns.view(np.float32)
    try:
        units = golomb.unpack(data[split:], k)
    except golomb.BitsError as error:
        raise errors.InvalidValues(f"the magnitudes cannot be read: {error}") from None
    if int(units.max()) + least > _MOST:
        raise errors.InvalidValues("a magnitude reaches 2^32 units")
    units += np.uint32(least)
    patterns ^= _patterns(units, exponent)
    return patterns.view(np.float32)


def _patterns(units: golomb.Numbers, exponent: int) -> np.ndarray:
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
