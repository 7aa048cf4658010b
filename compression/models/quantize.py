"""Weights as int8, one scale for each output channel, symmetric about zero.

B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR
2018; per channel as in R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018,
section 3. Tensors with one dimension (biases, norms, their statistics) are small and stay float32; integers stay what
they are.

Error bound, a property test: |weight - dequantized| <= scale / 2, scale = max |weight of the channel| / 127.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedpress.compression.errors import NonFiniteError
from fedpress.compression.models import architecture

LEVELS = 127
"""The largest magnitude: -128 is not used, so that every code has its negative."""


class Quantized(NamedTuple):
    """A tensor as `codes` times the scale of their channel.

    Attributes:
        codes: int8 (channels, ...), -127 to 127.
        scales: float32 (channels,), zero for a channel of zeros.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]


Tensors = dict[str, Quantized | NDArray[Any]]
"""A state dict with its large float tensors quantised: by name, tied tensors once."""


def quantize(model: nn.Module) -> Tensors:
    """The model's state dict with every float tensor of two or more dimensions as int8 per channel (first dimension).

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.27, -0.5]]))
    >>> quantize(layer)["weight"].codes
    array([[127, -50]], dtype=int8)

    Raises:
        NonFiniteError: A tensor holds NaN or infinity.
        UnsupportedLayer: The state dict holds something that is no tensor.
    """
    found: Tensors = {}
    for name, tensor in architecture.tensors(model).items():
        if not tensor.is_floating_point():
            found[name] = tensor.cpu().numpy().copy()
            continue
        array = tensor.to("cpu", torch.float32).numpy().copy()
        if not np.isfinite(array).all():
            raise NonFiniteError(
                f"{name!r} holds NaN or infinity: a student cannot be quantised; did its training diverge? Lower the"
                " learning rate of the distillation"
            )
        found[name] = quantize_channels(array) if array.ndim > 1 else array
    return found


def quantize_channels(weights: NDArray[np.float32]) -> Quantized:
    """Round each channel of `weights` (channels, ...), finite, to the nearest of 255 levels of its own scale."""
    rows = weights.reshape(len(weights), -1).astype(np.float64)
    largest = np.abs(rows).max(axis=1, initial=0.0)
    # The smallest normal number: a scale below it would be rounded so coarsely that the codes overflow.
    scales = np.where(largest > 0, np.maximum(largest / LEVELS, np.finfo(np.float32).tiny), 0).astype(np.float32)
    codes = np.rint(rows / np.where(scales > 0, scales, 1)[:, None]).clip(-LEVELS, LEVELS).astype(np.int8)
    return Quantized(codes.reshape(weights.shape), scales)


def dequantize(tensors: Mapping[str, Quantized | NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays that the codes stand for, float32; what was not quantised is passed through."""
    return {name: restore(tensor) if isinstance(tensor, Quantized) else tensor for name, tensor in tensors.items()}


def restore(tensor: Quantized) -> NDArray[np.float32]:
    """codes * scales, float32 (channels, ...)."""
    scales = tensor.scales.reshape(-1, *[1] * (tensor.codes.ndim - 1))
    restored: NDArray[np.float32] = tensor.codes.astype(np.float32) * scales
    return restored


def load(model: nn.Module, tensors: Mapping[str, Quantized | NDArray[Any]]) -> None:
    """Fill a model of the same shapes with the dequantised tensors, in place."""
    arrays = dequantize(tensors)
    for name, own in architecture.tensors(model).items():
        own.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name]).reshape(own.shape)))


def quantized_copy(model: nn.Module) -> nn.Module:
    """The model as it is after quantisation, to be evaluated; the given one is untouched."""
    copied = copy.deepcopy(model)
    load(copied, quantize(model))
    return copied
