"""Uniform steps with entropy-coded magnitudes: the fewest bits for a given error.

Entries above a threshold lie above it by amounts that are close to exponential, so that their numbers of steps are
close to geometric, and a Golomb code is close to their entropy (`golomb`, whose groups follow the layers' scales). At
equal error a uniform quantizer with such a code takes fewer bits than any quantizer with codes of fixed length
(Gish and Pierce 1968, "Asymptotically efficient quantizing"). docs/reference/wire.md has the bits.
"""

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.coding import golomb
from fedpress.compression.tensors.layout import BLOCK, Vector

_HEAD = struct.Struct("<ff")  # base, step
_LARGEST = float(np.finfo(np.float32).max)
_MOST_STEPS = 2**32 - 1


def encode(values: Vector, relative_error: float) -> tuple[bytes, Vector]:
    """Return the bytes of values (base, step, signs, steps above the base), and the values that a decoder reads.

    Args:
        values: Finite float32, shape (k,).
        relative_error: Target of norm(decoded - values) / norm(values), 0 < relative_error < 1.

    >>> encode(np.array([1, -5, 3], np.float32), 0.2)[1]
    array([ 2.2111893, -4.5776215,  2.2111893], dtype=float32)
    """
    k = len(values)
    if not k:
        return b"", np.empty(0, np.float32)
    # float64, by blocks that stay in the cache. Not by BLAS, whose sums depend on the number of its threads.
    total, squares, least = 0.0, 0.0, np.inf
    for _, magnitudes in _magnitudes(values):
        total += float(magnitudes.sum())
        squares += float(np.einsum("i,i->", magnitudes, magnitudes))
        least = min(least, float(magnitudes.min()))
    # An error that is uniform over a step has a standard deviation of step / sqrt(12).
    step = float(np.float32(relative_error * np.sqrt(12 * squares / k)))
    steps = np.zeros(k, np.uint32)
    if step:
        for start, magnitudes in _magnitudes(values):
            magnitudes -= least
            magnitudes /= step
            np.minimum(magnitudes, _MOST_STEPS, out=magnitudes)
            steps[start : start + len(magnitudes)] = magnitudes  # rounded down
    # The base that makes the mean error zero: it is the lowest value and the mean of what was cut off.
    base = float(np.float32(max(0.0, (total - float(steps.sum(dtype=np.uint64)) * step) / k)))
    if step:
        np.minimum(steps, np.uint32(min(_MOST_STEPS, (_LARGEST - base) // step)), out=steps)  # saturates
    negative = np.signbit(values)
    signs = np.packbits(negative, bitorder="little").tobytes()
    return _HEAD.pack(base, step) + signs + golomb.pack(golomb.plan(steps)), _decoded(base, step, negative, steps)


def unpack(data: bytes | memoryview, k: int) -> Vector:
    """Return the k values that `encode` wrote; those of foreign bytes may be infinite or NaN.

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
    return _decoded(base, step, negative, steps)


def _magnitudes(values: Vector) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield (start, magnitudes) of each block; the array is overwritten by the next one."""
    buffer = np.empty(min(BLOCK, len(values)))
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        yield start, np.abs(block, out=buffer[: len(block)])


def _decoded(base: float, step: float, negative: NDArray[np.bool_ | np.uint8], steps: golomb.Numbers) -> Vector:
    decoded = np.empty(len(steps), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # the decoder refuses what is not finite
        for start in range(0, len(steps), BLOCK):
            sums = steps[start : start + BLOCK].astype(np.float64)
            sums *= step
            sums += base
            decoded[start : start + BLOCK] = sums
            patterns = decoded[start : start + BLOCK].view(np.uint32)
            patterns ^= negative[start : start + BLOCK].astype(np.uint32) << np.uint32(31)
    return decoded


def least(k: int) -> int:
    """Return the least number of bytes that k values take.

    >>> least(100)
    36
    """
    return _HEAD.size + -(-k // 8) + golomb.least(k) if k else 0
