"""EDEN: rotate at random, quantize each coordinate with the levels that are best for a normal one, rotate back.

Vargaftik, Ben Basat, Portnoy, Mendelson, Ben-Itzhak and Mitzenmacher 2022, "EDEN: Communication-Efficient and Robust
Distributed Mean Estimation for Federated Learning", International Conference on Machine Learning (ICML), sections 3
and 5: randomized Hadamard rotation, deterministic quantization, unbiased scale. The levels: Max 1960, "Quantizing for
Minimum Distortion", IRE Transactions on Information Theory 6, table I.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors, seeds
from fedpress.compression.coding.bits import codes_length, pack_codes, unpack_codes
from fedpress.compression.quantizers.form import Form, Scheme
from fedpress.compression.tensors.layout import BLOCK, Layout, Vector
from fedpress.compression.tensors.update import Dense

ROTATED = 8192
"""Coordinates that are rotated together; the last ones in the next power of two, filled up with zeros."""

LEVELS = {
    1: (0.7980,),
    2: (0.4528, 1.510),
    3: (0.2451, 0.7560, 1.344, 2.152),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
}
"""Bits of a coordinate -> the levels above zero; those below are the same with the sign turned."""

_LARGEST = float(np.finfo(np.float32).max)


def scheme(bits: int) -> Scheme:
    """Return EDEN with 2^bits levels.

    Law: what is decoded, projected on the update, is the update, for every seed; what it has besides is at right
    angles to the update and averages out over the seeds. (Exactly so under uniformly random rotations. A Hadamard
    rotation with random signs comes close: what remains falls with the number of coordinates rotated together.)

    Args:
        bits: Of a coordinate, 1 to 4.

    Raises:
        ValueError: The bits are out of range.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> from fedpress.compression.tensors.side_info import SideInfo
    >>> from fedpress.compression.encoders import encoder
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (4,), "float32"),)))
    >>> encoded = encoder.quantized(scheme(bits=1)).encode(np.array([0, 0, 8, 0], np.float32), None, side_info, 0)
    >>> np.abs(encoded.decoded.dense()).round(5).tolist()
    [0.0, 0.0, 8.0, 0.0]
    """
    if bits not in LEVELS:
        raise ValueError(f"bits is {bits}, expected 1 to {max(LEVELS)} for each rotated coordinate")
    levels = _levels(bits)
    bounds = (levels[:-1] + levels[1:]) / 2

    def pack(update: Vector, layout: Layout, seed: int) -> tuple[bytes, Dense]:
        seed &= (1 << 64) - 1
        rotations, coordinates = _sizes(len(update))
        scales, codes = np.empty((rotations, 1), "<f4"), np.empty(coordinates, np.uint8)
        done = 0
        for first, rows, width in _batches(len(update)):
            part = update[first : first + rows * width]
            padded = np.zeros(rows * width)
            padded[: len(part)] = part
            block = padded.reshape(rows, width)
            squares = np.einsum("ij,ij->i", block, block)[:, None]
            rotated = _hadamard(block * _signs(seed, first, rows * width).reshape(rows, width))
            normal = np.divide(rotated, np.sqrt(squares / width), out=np.zeros_like(rotated), where=squares > 0)
            chosen = np.searchsorted(bounds, normal)
            along = np.einsum("ij,ij->i", rotated, levels[chosen])[:, None]
            scale = np.divide(squares, along, out=np.zeros_like(squares), where=squares > 0)
            scales[done : done + rows] = np.minimum(scale, _LARGEST)
            codes[first : first + rows * width] = chosen.reshape(-1)
            done += rows
        body = seed.to_bytes(8, "little") + scales.tobytes() + pack_codes(codes, bits)
        return body, _decoded(scales.reshape(-1), codes, seed, levels, len(update))

    return Scheme(FORM, bits, pack)


def _levels(bits: int) -> NDArray[np.float64]:
    above = np.array(LEVELS[bits])
    return np.concatenate([-above[::-1], above])


def _batches(n: int) -> Iterator[tuple[int, int, int]]:
    """Yield what is rotated: position of the first coordinate, number of rotations, coordinates in each."""
    whole = n // ROTATED * ROTATED
    for first in range(0, whole, BLOCK):
        yield first, min(BLOCK, whole - first) // ROTATED, ROTATED
    if n > whole:
        yield whole, 1, 1 << (n - whole - 1).bit_length()


def _signs(seed: int, first: int, count: int) -> NDArray[np.float64]:
    """Return +1 or -1 for each coordinate: the top bit of SplitMix64, by position."""
    return np.where(seeds.split_mix(seed, first, count) >> np.uint64(63), -1.0, 1.0)


def _hadamard(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each row times the Hadamard matrix of Sylvester's order, made orthonormal: its own inverse.

    The low bits of the index first, then the high ones, each as the leading axis, so that what is added is long runs.
    """
    count, width = rows.shape
    low = min(64, width)
    high = width // low
    turned = _butterflies(rows.reshape(count * high, low).T.copy())
    turned = _butterflies(turned.reshape(low, count, high).transpose(2, 1, 0).copy())
    orthonormal: NDArray[np.float64] = turned.reshape(high, count, low).transpose(1, 0, 2).reshape(count, width)
    orthonormal /= np.sqrt(width)
    return orthonormal


def _butterflies(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the columns times the Hadamard matrix, not scaled; the array that is given is overwritten."""
    spare = np.empty_like(columns)
    half = 1
    while half < len(columns):
        pairs = columns.reshape(len(columns) // (2 * half), 2, half, -1)
        sums = spare.reshape(pairs.shape)
        np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        columns, spare = spare, columns
        half *= 2
    return columns


def _sizes(n: int) -> tuple[int, int]:
    """Return the number of rotations and of rotated coordinates, without a loop over either."""
    whole, rest = divmod(n, ROTATED)
    return whole + (rest > 0), whole * ROTATED + (1 << (rest - 1).bit_length() if rest else 0)


def _length(bits: int, layout: Layout) -> int | None:
    if bits not in LEVELS:
        return None
    rotations, coordinates = _sizes(layout.size)
    return 8 + 4 * rotations + codes_length(coordinates, bits)


def _unpack(bits: int, body: memoryview, layout: Layout) -> Dense:
    rotations, coordinates = _sizes(layout.size)
    seed = int.from_bytes(body[:8], "little")
    scales = np.frombuffer(body, "<f4", rotations, 8)
    if not np.isfinite(scales).all():
        raise errors.NonFiniteValues("the payload holds scales that are NaN or infinite")
    codes = unpack_codes(body[8 + 4 * rotations :], coordinates, bits)
    return _decoded(scales, codes, seed, _levels(bits), layout.size)


def _decoded(
    scales: NDArray[np.float32], codes: NDArray[np.uint8], seed: int, levels: NDArray[np.float64], n: int
) -> Dense:
    """Return the update of a scale for each rotation and a code for each rotated coordinate."""
    wide = scales.astype(np.float64)  # of finite ones only: numpy warns of a signalling NaN that becomes a quiet one
    decoded = np.empty(n, np.float32)
    done = 0
    for first, rows, width in _batches(n):
        size = rows * width
        block = _hadamard(levels[codes[first : first + size]].reshape(rows, width))
        block *= wide[done : done + rows, None] * _signs(seed, first, size).reshape(rows, width)
        decoded[first : first + size] = np.clip(block, -_LARGEST, _LARGEST).reshape(-1)[: n - first]
        done += rows
    return Dense(decoded)


FORM = Form("eden", 66, _length, _unpack)
