"""A trained model's weights as small integers: which settings there are, and the one way in, `quantize`.

Tensors with one dimension (biases, norms, their statistics) are small and are not quantized; they are rounded to
float16 where that costs no more than a two-thousandth of any of them. Integers stay what they are.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression.errors import NonFiniteError
from fedpress.compression.models import architecture
from fedpress.compression.models.quantization import adaround, quantization_aware, quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Tensors

ROUNDINGS = ("nearest", "adaround")
SCALES = ("largest", "least-squares")


@dataclass(frozen=True)
class Quantization:
    """Settings of the quantization of one student.

    Attributes:
        bits: Of each weight, 2 to 8.
        group: How many weights of a channel share a scale, along its inputs; 0: all of them.
        rounding: "nearest", or "adaround": up or down, whichever keeps the layers' answers to the proxy data.
        scale: "largest": the largest weight is the largest code; "least-squares": large weights are cut off where that
            makes the squared error smaller.
        sparsity: Part of the weights set to zero first, those of the smallest magnitude in the whole model.
        aware: Epochs of distillation with the weights rounded as they will be (`quantization_aware.prepare`), before
            the bundle is made; 0: none.
        onnx: Whether the bundle holds an int8 ONNX file to run as well.
    """

    bits: int = 8
    group: int = 0
    rounding: str = "nearest"
    scale: str = "largest"
    sparsity: float = 0.0
    aware: int = 0
    onnx: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= quantized_tensor.MAX_BITS:
            raise ValueError(
                f"bits must be 2 to {quantized_tensor.MAX_BITS}, got {self.bits}; float32 weights are no student's"
            )
        if self.group < 0:
            raise ValueError(f"group must be at least 1, or 0 for whole channels, got {self.group}")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {self.rounding!r}")
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {self.scale!r}")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {self.sparsity}; is it the part that is kept?")
        if self.aware < 0:
            raise ValueError(f"aware counts epochs and must be at least 0, got {self.aware}")
        if self.aware and self.rounding == "adaround":
            raise ValueError(
                "aware training chooses what each weight is rounded to, and so does adaround: set aware=0, or"
                " rounding='nearest'"
            )


DEFAULTS = Quantization()


def quantize(
    model: nn.Module, settings: Quantization = DEFAULTS, calibration: Tensor | None = None, *, seed: int = 0
) -> Tensors:
    """The model's state dict with every float tensor of two or more dimensions quantized.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.27, -0.5]]))
    >>> quantize(layer)["weight"].codes
    array([[125, -49]], dtype=int8)

    Args:
        model: Untouched. One that `quantization_aware.prepare` made is quantized by the scales that it learned.
        settings: How.
        calibration: Inputs that the layers' answers are kept on, (N, ...); adaround needs them.
        seed: Of the order in which adaround sees them.

    Raises:
        NonFiniteError: A tensor holds NaN or infinity.
        UnsupportedLayer: The state dict holds something that is no tensor.
        ValueError: There are no calibration inputs, and adaround needs them.
    """
    if settings.rounding == "adaround" and (calibration is None or not len(calibration)):
        raise ValueError("adaround needs calibration inputs, got none: does the task hold out a proxy part?")
    plain, scales = quantization_aware.finish(model)
    if settings.sparsity and not scales:
        quantization_aware.sparsify(plain, settings.sparsity)
    found: Tensors = {}
    for name, tensor in architecture.tensors(plain).items():
        if not tensor.is_floating_point():
            found[name] = tensor.cpu().numpy().copy()
            continue
        array = tensor.to("cpu", torch.float32).numpy().copy()
        if not np.isfinite(array).all():
            raise NonFiniteError(
                f"{name!r} holds NaN or infinity: a student cannot be quantized; did its training diverge? Lower the"
                " learning rate of the distillation"
            )
        if array.ndim < 2:
            found[name] = _halved(array)
            continue
        if name not in scales:
            search = settings.scale == "least-squares"
            scales[name] = quantized_tensor.find_scales(array, settings.bits, settings.group, search)
        found[name] = quantized_tensor.to_nearest(array, scales[name], settings.bits, settings.group)
    if settings.rounding == "adaround":
        assert calibration is not None
        found |= adaround.rounded(plain, found, calibration, seed=seed)
    return found


def prepare(model: nn.Module, settings: Quantization) -> nn.Module:
    """A copy of the model to train on, whose weights are rounded as `quantize` will with these settings."""
    search = settings.scale == "least-squares"
    return quantization_aware.prepare(model, settings.bits, settings.group, search=search, sparsity=settings.sparsity)


def applied(model: nn.Module, tensors: Tensors) -> nn.Module:
    """A copy of the model with the dequantized tensors, to be evaluated; the given one is untouched."""
    copied, _ = quantization_aware.finish(model)
    architecture.fill(copied, quantized_tensor.dequantize(tensors))
    return copied


def quantized_copy(model: nn.Module, settings: Quantization = DEFAULTS) -> nn.Module:
    """The model as it is after quantization, to be evaluated; the given one is untouched."""
    return applied(model, quantize(model, settings))


def _halved(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to float16, still as float32; as it is where that would lose more than float16's own precision."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16).astype(np.float32)
    return half if (np.abs(half - array) <= np.abs(array) / 2**11).all() else copy.copy(array)
