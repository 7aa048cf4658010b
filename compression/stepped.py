"""Uniform steps with entropy-coded magnitudes: the fewest bits for a given error.

Entries above a threshold lie above it by amounts that are close to exponential, so that their numbers of steps are
close to geometric, and a Golomb code is close to their entropy (`golomb`, whose groups follow the layers' scales). At
equal error a uniform quantiser with such a code takes fewer bits than any quantiser with codes of fixed length
(Gish and Pierce 1968, "Asymptotically efficient quantizing"). docs/wire.md has the bits.
"""

import struct

import numpy as np

from fedpress.compression import errors, golomb
from fedpress.compression.vector import Vector

_HEAD = struct.Struct("<ff")  # base, step
_LARGEST = float(np.finfo(np.float32).max)


def pack(values: Vector, relative_error: float) -> bytes:
    """Return base and step, the signs, and how many steps each magnitude lies above the base.

    Args:
        values: Finite float32, shape (k,).
        relative_error: About what norm(decoded - values) / norm(values) becomes, 0 < relative_error < 1.

    >>> unpack(pack(np.array([1, -5, 3], np.float32), 0.2), 3)
    array([ 2.2111893, -4.5776215,  2.2111893], dtype=float32)
    """
    if not len(values):
        return b""
    k = len(values)
    magnitudes = values.astype(np.float64)
    np.abs(magnitudes, out=magnitudes)
    mean = float(magnitudes.mean())
    # Not by BLAS, whose sums depend on the number of its threads, and no array for the squares.
    square = float(np.einsum("i,i->", magnitudes, magnitudes)) / k
    # An error that is uniform over a step has a standard deviation of step / sqrt(12).
    step = float(np.float32(relative_error * np.sqrt(12 * square)))
    steps = magnitudes
    if step:
        steps -= magnitudes.min()
        steps /= step
        np.floor(steps, out=steps)
    else:
        steps[:] = 0
    # The base that makes the mean error zero: it is the lowest value and the mean of what the floor cuts off.
    base = float(np.float32(max(0.0, mean - float(steps.mean()) * step)))
    if step:
        np.minimum(steps, (_LARGEST - base) // step, out=steps)  # saturates
    signs = np.packbits(np.signbit(values), bitorder="little").tobytes()
    return _HEAD.pack(base, step) + signs + golomb.pack(golomb.plan(steps.astype(np.uint32)))


def unpack(data: bytes | memoryview, k: int) -> Vector:
    """Return the k values that `pack` wrote; what they say may be infinite or NaN.

    Args:
        data: All bytes of the values, at least `least(k)`.
        k: Number of values.

    Raises:
        InvalidValues: The numbers of steps cannot be read, or bytes are left over.
    """
    if not k:
        return np.empty(0, np.float32)
    base, step = _HEAD.unpack_from(data)
    split = _HEAD.size + -(-k // 8)
    negative = np.unpackbits(np.frombuffer(data[_HEAD.size : split], np.uint8), count=k, bitorder="little")
    try:
        steps = golomb.unpack(data[split:], k)
    except golomb.BitsError as error:
        raise errors.InvalidValues(f"the magnitudes cannot be read: {error}") from None
    sums = steps.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # the decoder refuses what is not finite
        sums *= step
        sums += base
        magnitudes: Vector = sums.astype(np.float32)
    patterns = magnitudes.view(np.uint32)
    patterns ^= negative.astype(np.uint32) << np.uint32(31)
    return magnitudes


def least(k: int) -> int:
    """Return the least number of bytes that k values take.

    >>> least(100)
    36
    """
    return _HEAD.size + -(-k // 8) + golomb.least(k) if k else 0
