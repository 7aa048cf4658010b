"""Rounding of a whole model on calibration data: each weight after those before it, on the outputs of their rounding.

The model starts with every weight rounded to nearest, and runs once. Before a weight is used, it is rounded by data
instead, with the same scales (`calibration`). Embeddings stay rounded to nearest: the second moments of their inputs,
one of which is 1 and the others 0, are diagonal, and rounding to nearest is then optimal. So does what calibration does
not reach, which is logged by name.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression.models import architecture, calibration
from fedpress.compression.models.calibration import Site
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.models.quantization import quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Quantized
from fedpress.compression.models.reproducible import reproducible

Rounding = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Maps a weight (groups, outputs, inputs), the scale of each entry, second moments (groups, inputs, inputs) and the
largest code to codes; laws: codes are whole, at most the largest in magnitude, and zero where the weight is."""

_log = logging.getLogger(__name__)


class Rounded(NamedTuple):
    """Result of rounding a model.

    Attributes:
        tensors: Tensors that were rounded by data, by name.
        looked_up: Embeddings, which stay rounded to nearest.
        unreached: Weights that stay so because calibration did not reach them.
    """

    tensors: dict[str, Quantized]
    looked_up: tuple[str, ...]
    unreached: tuple[str, ...]


def rounded(
    model: nn.Module, nearest: Mapping[str, Quantized | NDArray[Any]], inputs: Inputs, rounding: Rounding, *, seed: int
) -> Rounded:
    """Return the weights of a model's products and convolutions, rounded so that the layers' outputs stay close.

    What stays rounded to nearest is logged, and named where that is no embedding.

    Args:
        model: Model with float weights; untouched.
        nearest: Tensors rounded to nearest, whose scales are used.
        inputs: Calibration inputs, of N >= 1 examples (`calibration.calibrate`).
        rounding: How a weight is rounded.
        seed: Seed of what a forward pass may draw.

    Raises:
        NonFiniteError: The inputs of a weight hold NaN or infinity.
    """
    exact = architecture.tensors(model)
    codes: dict[str, Tensor] = {}

    def visit(site: Site, weight: Tensor, moments: Tensor) -> None:
        start = nearest.get(site.name)
        if not isinstance(start, Quantized):
            return
        if site.name not in codes:
            codes[site.name] = torch.from_numpy(start.codes.copy())
        float_weight = site.matrix(exact[site.name].detach().cpu().contiguous())
        scales = site.matrix(torch.from_numpy(quantized_tensor.scale_of_each(start)))
        found = rounding(float_weight, scales, moments, quantized_tensor.levels(start.bits))
        site.matrix(codes[site.name]).copy_(found)
        weight.copy_(found * scales)

    with reproducible(seed):
        rough = copy.deepcopy(model).cpu()
        architecture.fill(rough, quantized_tensor.dequantize(nearest))
        reached = calibration.calibrate(rough, inputs, visit)
    tensors = {}
    for name, found in codes.items():
        start = nearest[name]
        assert isinstance(start, Quantized)
        rows = quantized_tensor.grouped(found.numpy(), start.group)
        tensors[name] = quantized_tensor.of_codes(rows, start.codes.shape, start.scales, start.bits, start.group)
    left = {name for name, tensor in nearest.items() if isinstance(tensor, Quantized)} - tensors.keys()
    looked_up = tuple(name for name in nearest if name in left and name in reached.looked_up)
    unreached = tuple(name for name in nearest if name in left and name not in reached.looked_up)
    _log.info(
        "rounded on %d calibration examples: %d tensors; to nearest: %d embeddings, %d others",
        *(reached.examples, len(tensors), len(looked_up), len(unreached)),
    )
    if unreached:
        _log.warning(
            "%d of %d tensors are rounded to nearest, since no product with calibration inputs reaches them: %s",
            *(len(unreached), len(left) + len(tensors), ", ".join(unreached)),
        )
    return Rounded(tensors, looked_up, unreached)
