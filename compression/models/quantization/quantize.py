"""A trained model's weights as small integers: `quantize`, and the step of a student that calls it.

Tensors with one dimension (biases, norms, their statistics) are small and are not quantized; they are rounded to
float16 where that costs no more than a two-thousandth of any of them. Integers stay what they are.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression.errors import NonFiniteError
from fedpress.compression.models import architecture
from fedpress.compression.models.quantization import adaround, quantization_aware, quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Tensors
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.step import Materials, Student


@dataclass(frozen=True)
class Quantize:
    """Step: the student's weights become small integers, and its model computes with what these stand for.

    Attributes:
        settings: How.
    """

    settings: Quantization = Quantization()

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the student with its tensors quantized."""
        tensors = quantize(student.model, self.settings, materials.inputs, seed=materials.seed)
        return replace(student.after("quantized", applied(student.model, tensors)), tensors=tensors)


def quantize(
    model: nn.Module, settings: Quantization = Quantization(), calibration: Tensor | None = None, *, seed: int = 0
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
    quantized: Tensors = {}
    for name, tensor in architecture.tensors(plain).items():
        if not tensor.is_floating_point():
            quantized[name] = tensor.cpu().numpy().copy()
            continue
        array = tensor.to("cpu", torch.float32).numpy().copy()
        if not np.isfinite(array).all():
            raise NonFiniteError(
                f"{name!r} holds NaN or infinity: a student cannot be quantized; did its training diverge? Lower the"
                " learning rate of the distillation"
            )
        if array.ndim < 2:
            quantized[name] = _halved(array)
            continue
        if name not in scales:
            search = settings.scale == "least-squares"
            scales[name] = quantized_tensor.find_scales(array, settings.bits, settings.group_size, search)
        quantized[name] = quantized_tensor.to_nearest(array, scales[name], settings.bits, settings.group_size)
    if settings.rounding == "adaround":
        assert calibration is not None
        quantized |= adaround.rounded(plain, quantized, calibration, seed=seed)
    return quantized


def applied(model: nn.Module, tensors: Tensors) -> nn.Module:
    """A copy of the model with the dequantized tensors, to be evaluated; the given one is untouched."""
    copied, _ = quantization_aware.finish(model)
    architecture.fill(copied, quantized_tensor.dequantize(tensors))
    return copied


def quantized_copy(model: nn.Module, settings: Quantization = Quantization()) -> nn.Module:
    """The model as it is after quantization, to be evaluated; the given one is untouched."""
    return applied(model, quantize(model, settings))


def _halved(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to float16, still as float32; as it is where that would lose more than float16's own precision."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16).astype(np.float32)
    return half if (np.abs(half - array) <= np.abs(array) / 2**11).all() else copy.copy(array)
