"""Quantized tensors: small integers times the scale of their group; rounding and restoring them.

Symmetric uniform quantization: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018; a scale for each output channel as in R. Krishnamoorthi, "Quantizing deep
convolutional networks for efficient inference", 2018, section 3, or for each group of weights of a channel, along its
inputs: S. Shen et al., "Q-BERT", AAAI 2020, section 3.3.

Scales are powers of 2^(1/16), which take one entropy-coded byte in a bundle instead of four (quantized scales:
T. Dettmers et al., "QLoRA", NeurIPS 2023, section 3) and widen a step by 2 % on average.

Error bound, a property test: |weight - restored| <= scale / 2 for weights of at most `levels(bits)` scales; with scales
by the largest magnitude, that is every weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_BITS = 8
FINENESS = 16
"""Number of scales in a factor of two."""
MIN_EXPONENT, MAX_EXPONENT = -126 * FINENESS, 128 * FINENESS - 1
"""Exponents of normal float32 numbers: subnormal scales would be rounded so coarsely that codes overflow."""
_SEARCHED = 3 * FINENESS + 1
_POWERS = np.array([2 ** (step / FINENESS) for step in range(FINENESS)], np.float32)

Scales = NDArray[np.float32]
"""Scales (channels, groups), above 0; 0 for a group of zeros."""


class Quantized(NamedTuple):
    """A tensor as codes times the scale of their group.

    Attributes:
        codes: int8 (channels, ...), at most `levels(bits)` in magnitude.
        scales: float32 (channels, groups).
        bits: Bits of a code, 2 to 8.
        group: Weights of a channel, in row-major order, that share a scale; the last group may be shorter. 0: all.
    """

    codes: NDArray[np.int8]
    scales: Scales
    bits: int = MAX_BITS
    group: int = 0


Tensors = dict[str, Quantized | NDArray[Any]]
"""A state dict with its large float tensors quantized, by name, tied tensors once."""


def levels(bits: int) -> int:
    """Return the largest code; the range is symmetric, without the most negative number of two's complement.

    >>> levels(8), levels(4), levels(2)
    (127, 7, 1)
    """
    return (1 << (bits - 1)) - 1


def groups_of(shape: tuple[int, ...], group: int) -> int:
    """Return the number of groups of each channel.

    >>> groups_of((64, 32, 5, 5), 0), groups_of((512, 1024), 100)
    (1, 11)

    Args:
        shape: Shape of the tensor, (channels, ...).
        group: Weights that share a scale; 0: all of a channel.
    """
    return -(-int(np.prod(shape[1:])) // group) if group else 1


def exponents(scales: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the exponents k of the smallest 2^(k/16) >= scales, which are above 0; clipped to normal float32 numbers.

    >>> exponents(np.array([1.0, 0.9]))
    array([ 0, -2])
    """
    unclipped = np.ceil(FINENESS * np.log2(scales.astype(np.float64)) - 1e-4)  # float32 powers are rounded
    return unclipped.clip(MIN_EXPONENT, MAX_EXPONENT).astype(np.int64)


def powers(exponents: NDArray[np.int64]) -> Scales:
    """Return 2^(k/16) as float32, the same bits on every machine.

    >>> powers(np.array([0, 16, -8]))
    array([1.        , 2.        , 0.70710677], dtype=float32)
    """
    scales: Scales = np.ldexp(_POWERS[exponents % FINENESS], (exponents // FINENESS).astype(np.int32))
    return scales


def grouped(weights: NDArray[Any], group: int) -> NDArray[Any]:
    """Return weights as rows of groups, (channels, groups, size), the last group padded with zeros.

    Args:
        weights: Weights or codes, (channels, ...).
        group: Weights that share a scale; 0: all of a channel.
    """
    rows = weights.reshape(len(weights), -1)
    count = groups_of(weights.shape, group)
    padding = count * group - rows.shape[1] if group else 0
    return np.pad(rows, ((0, 0), (0, padding))).reshape(len(rows), count, -1)


def ungrouped(rows: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return rows of groups as a tensor; the inverse of `grouped`.

    Args:
        rows: Weights or codes, (channels, groups, size).
        shape: Shape of the tensor, (channels, ...).
    """
    return rows.reshape(len(rows), -1)[:, : int(np.prod(shape[1:]))].reshape(shape)


def find_scales(weights: NDArray[np.float32], bits: int, group: int = 0, search: bool = False) -> Scales:
    """Return the scale of each group, float32 (channels, groups); 0 for a group of zeros.

    Args:
        weights: Finite weights (channels, ...).
        bits: Bits of a code.
        group: Weights that share a scale; 0: all of a channel.
        search: False: the largest weight gets the largest code, and none is clipped. True: the scale with the least
            squared error, down to an eighth of that; it pays below 8 bits, where a few large weights would otherwise
            take most of the levels.
    """
    rows = grouped(weights, group).astype(np.float64)
    largest = np.abs(rows).max(axis=2, initial=0.0)
    top = exponents(np.where(largest > 0, largest / levels(bits), 1.0))
    best = top
    if search:
        least = np.full(top.shape, np.inf)
        for candidate in (np.maximum(top - step, MIN_EXPONENT) for step in range(_SEARCHED)):
            scales = powers(candidate)[..., None]
            errors = np.square(np.rint(rows / scales).clip(-levels(bits), levels(bits)) * scales - rows).sum(axis=2)
            best = np.where(errors < least, candidate, best)
            least = np.minimum(errors, least)
    return np.where(largest > 0, powers(best), np.float32(0))


def to_nearest(weights: NDArray[np.float32], scales: Scales, bits: int, group: int = 0) -> Quantized:
    """Round weights to the nearest code; those beyond the largest code are clipped.

    Args:
        weights: Finite weights (channels, ...).
        scales: Scales (channels, groups).
        bits: Bits of a code.
        group: Weights that share a scale; 0: all of a channel.
    """
    rows = grouped(weights, group).astype(np.float64) / np.where(scales > 0, scales, 1)[..., None]
    return of_codes(np.rint(rows).clip(-levels(bits), levels(bits)), weights.shape, scales, bits, group)


def of_codes(rows: NDArray[Any], shape: tuple[int, ...], scales: Scales, bits: int, group: int) -> Quantized:
    """Return the quantized tensor of codes; the scale of a group of zeros becomes 0.

    Args:
        rows: Codes (channels, groups, size), integers of any dtype.
        shape: Shape of the tensor, (channels, ...).
        scales: Scales (channels, groups).
        bits: Bits of a code.
        group: Weights that share a scale; 0: all of a channel.
    """
    return Quantized(
        ungrouped(rows.astype(np.int8), shape), np.where(rows.any(axis=2), scales, np.float32(0)), bits, group
    )


def restore(tensor: Quantized) -> NDArray[np.float32]:
    """Return codes times scales, float32 (channels, ...)."""
    rows = grouped(tensor.codes, tensor.group).astype(np.float32) * tensor.scales[..., None]
    return ungrouped(rows, tensor.codes.shape)


def scale_of_each(tensor: Quantized) -> NDArray[np.float32]:
    """Return the scale of each entry, float32 (channels, ...); 1 in groups of zeros."""
    rows = grouped(tensor.codes, tensor.group)
    scales = np.where(tensor.scales > 0, tensor.scales, np.float32(1))[..., None]
    return np.ascontiguousarray(ungrouped(np.broadcast_to(scales, rows.shape), tensor.codes.shape))


def dequantize(tensors: Mapping[str, Quantized | NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the tensors by name with quantized ones restored to float32; others are passed through."""
    return {name: restore(tensor) if isinstance(tensor, Quantized) else tensor for name, tensor in tensors.items()}


def shape_of(tensor: Quantized | NDArray[Any]) -> tuple[int, ...]:
    """Return the shape of a tensor, quantized or not."""
    return tuple(tensor.codes.shape if isinstance(tensor, Quantized) else tensor.shape)
