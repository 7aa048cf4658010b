"""Quantization of a trained model's weights: `quantize`, and the step of a student that calls it.

Tensors of one dimension (biases, norms and their statistics) are small and are not quantized, but rounded to float16
where no entry changes by more than a two-thousandth. Integers are unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedpress.compression.errors import NonFiniteError
from fedpress.compression.models import architecture, inputs, pretrained
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.models.quantization import adaround, calibrated, gptq, quantization_aware, quantized_tensor
from fedpress.compression.models.quantization.calibrated import Rounding
from fedpress.compression.models.quantization.quantized_tensor import Tensors
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.step import Materials, Student

ROUNDINGS: Final[Mapping[str, Rounding]] = {"adaround": adaround.rounded, "gptq": gptq.rounded}
"""Roundings on calibration data, by their names in `Quantization.rounding`."""


@dataclass(frozen=True)
class Quantize:
    """Step: quantize the student's weights; its model then computes with the dequantized ones.

    Attributes:
        settings: Quantization.
        base: Safetensors file or folder of pretrained weights: tensors of the student that are there, to the bit, and
            are not trained, stay as they are (`pretrained.shared`); None: all are quantized.
    """

    settings: Quantization = Quantization()
    base: Path | None = None

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the student with its tensors quantized.

        Args:
            student: Student after its distillation.
            materials: Models, data and seed.
        """
        kept = pretrained.shared(student.model, pretrained.Weights(self.base)) if self.base else ()
        tensors = quantize(student.model, self.settings, materials.inputs, seed=materials.seed, kept=kept)
        return replace(student.after("quantized", applied(student.model, tensors)), tensors=tensors)


def quantize(
    model: nn.Module,
    settings: Quantization = Quantization(),
    calibration: Inputs | None = None,
    *,
    seed: int = 0,
    kept: Collection[str] = (),
) -> Tensors:
    """Return the model's state dict with every float tensor of two or more dimensions quantized.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.27, -0.5]]))
    >>> quantize(layer)["weight"].codes
    array([[125, -49]], dtype=int8)

    Args:
        model: The model; untouched. One from `quantization_aware.prepare` is quantized with its learned scales.
        settings: Quantization.
        calibration: Calibration inputs of N examples for adaround and gptq.
        seed: Seed of what a forward pass may draw.
        kept: Names of tensors that stay as they are, of dtypes that a bundle holds.

    Raises:
        NonFiniteError: A tensor holds NaN or infinity.
        UnsupportedLayer: The state dict holds something other than tensors.
        ValueError: adaround or gptq is chosen, but there are no calibration inputs; or weights are to become zeros,
            and others to stay.
    """
    if kept and settings.sparsity:
        raise ValueError("sparsity sets the smallest weights of the whole model to zero, and some are to stay")
    by_data = ROUNDINGS.get(settings.rounding)
    if by_data and (calibration is None or not inputs.count(calibration)):
        raise ValueError(
            f"{settings.rounding} needs calibration inputs, got none: does the task hold out a proxy part?"
        )
    plain, scales = quantization_aware.finish(model)
    if settings.sparsity and not scales:
        quantization_aware.sparsify(plain, settings.sparsity)
    quantized: Tensors = {}
    for name, tensor in architecture.tensors(plain).items():
        if not tensor.is_floating_point() or name in kept:
            quantized[name] = tensor.cpu().numpy().copy()
            continue
        array = tensor.to("cpu", torch.float32).numpy().copy()
        if not np.isfinite(array).all():
            raise NonFiniteError(
                f"{name!r} holds NaN or infinity and cannot be quantized: did the training diverge? Lower the learning"
                " rate of the distillation"
            )
        if array.ndim < 2:
            quantized[name] = _halved(array)
            continue
        if name not in scales:
            search = settings.scale == "least-squares"
            scales[name] = quantized_tensor.find_scales(array, settings.bits, settings.group_size, search)
        quantized[name] = quantized_tensor.to_nearest(array, scales[name], settings.bits, settings.group_size)
    if by_data:
        quantized |= calibrated.rounded(plain, quantized, calibration, by_data, seed=seed).tensors
    return quantized


def applied(model: nn.Module, tensors: Tensors) -> nn.Module:
    """Return a copy of the model with dequantized tensors, for evaluation.

    Args:
        model: The model; untouched.
        tensors: Its tensors, as `quantize` returns them.
    """
    copied, _ = quantization_aware.finish(model)
    architecture.fill(copied, quantized_tensor.dequantize(tensors))
    return copied


def quantized_copy(model: nn.Module, settings: Quantization = Quantization()) -> nn.Module:
    """Return the model as it is after quantization, for evaluation.

    Args:
        model: The model; untouched.
        settings: Quantization.
    """
    return applied(model, quantize(model, settings))


def _halved(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the array rounded to float16, as float32; unchanged where an entry is outside float16's normal range."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16).astype(np.float32)
    return half if (np.abs(half - array) <= np.abs(array) / 2**11).all() else copy.copy(array)
