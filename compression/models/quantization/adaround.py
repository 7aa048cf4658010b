"""Adaptive rounding: each weight is rounded up or down so that the outputs of its layer stay close.

M. Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020.

Rounding to nearest is not optimal for a layer, because its errors add up over the inputs. Layer by layer, with the
inputs that arrive from the quantized layers before it, a soft choice h(V) in [0, 1] between the code below and the code
above is trained to reproduce the outputs of the float layer, and is driven toward 0 or 1 as training proceeds
(section 3.2, equations 21 to 25, without the activation function).

Error bound, a property test: |weight - restored| <= scale, for weights of at most `levels(bits)` scales.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from fedpress.compression.models import architecture
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.inputs import Batch, Inputs
from fedpress.compression.models.quantization import quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Quantized
from fedpress.compression.models.reproducible import reproducible

STEPS = 1000
PLACES = 512
"""Outputs of a layer in a step: an example has one for each place of a convolution's output."""
MAX_BATCH = 64
LEARNING_RATE = 1e-2
REGULARIZATION = 0.01
WARM_UP = 0.2
"""Fraction of the steps before the regularization sets in."""
BETA = (20.0, 2.0)
"""Exponent of the regularization, at its first step and at its last."""
STRETCH = (-0.1, 1.1)
"""Range of the sigmoid before h clips it to [0, 1], so that h reaches both ends."""
MAX_INPUTS = 1024


def rounded(
    model: nn.Module,
    nearest: Mapping[str, Quantized | NDArray[Any]],
    inputs: Inputs,
    *,
    steps: int = STEPS,
    seed: int,
) -> dict[str, Quantized]:
    """Return the weights of convolutions and linear layers by name, rounded so that the layers' outputs stay close.

    Args:
        model: Model with float weights; untouched.
        nearest: Tensors rounded to nearest, whose scales are used; those of other layers are used as they are.
        inputs: Calibration inputs, (N, ...), of which at most `MAX_INPUTS` are used.
        steps: Training steps for each layer.
        seed: Seed of the order of the inputs.
    """
    with reproducible(seed) as generator:
        exact = copy.deepcopy(model).cpu().eval()
        rough = copy.deepcopy(exact)
        architecture.fill(rough, quantized_tensor.dequantize(nearest))
        batches = list(model_inputs.pieces(model_inputs.first(inputs, MAX_INPUTS), 256))
        quantized: dict[str, Quantized] = {}
        paths = [path for path, layer in exact.named_modules() if isinstance(layer, _ConvNd | nn.Linear)]
        for path in paths:
            name = f"{path}.weight" if path else "weight"
            start = nearest.get(name)
            layer, copied = exact.get_submodule(path), rough.get_submodule(path)
            if not isinstance(start, Quantized):  # tied to a tensor of another name
                continue
            exact_inputs, rough_inputs = _inputs(exact, layer, batches), _inputs(rough, copied, batches)
            if not len(rough_inputs) or len(rough_inputs) != len(exact_inputs):
                continue
            with torch.no_grad():
                outputs = torch.cat([layer(batch) for batch in torch.split(exact_inputs, 256)])
            quantized[name] = _best(layer, start, rough_inputs, outputs, steps, generator)
            with torch.no_grad():
                copied.weight.copy_(torch.from_numpy(quantized_tensor.restore(quantized[name])))  # type: ignore[operator]
    return quantized


def _inputs(model: nn.Module, layer: nn.Module, batches: list[Batch]) -> Tensor:
    """Return the inputs of a layer while the model runs on `batches`; empty where the layer is not called."""
    recorded: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: recorded.append(arguments[0].detach()))
    try:
        with torch.no_grad():
            for batch in batches:
                model_inputs.call(model, batch)
    finally:
        handle.remove()
    return torch.cat(recorded) if recorded else torch.empty(0)


def _best(
    layer: nn.Module, start: Quantized, inputs: Tensor, outputs: Tensor, steps: int, generator: torch.Generator
) -> Quantized:
    """Return the layer's weight with the learned rounding.

    Args:
        layer: Float layer.
        start: Its weight rounded to nearest, whose scales are kept.
        inputs: Inputs of the layer from the quantized layers before it, (N, ...).
        outputs: Outputs of the float layer on float inputs, (N, ...).
        steps: Training steps.
        generator: Generator of the batches.
    """
    weight = layer.weight.detach().float().numpy()  # type: ignore[operator]
    scales = np.where(start.scales > 0, start.scales, 1)[..., None]
    exact = quantized_tensor.grouped(weight, start.group).astype(np.float64) / scales
    largest = quantized_tensor.levels(start.bits)
    exact = exact.clip(-largest, largest)
    below = torch.from_numpy(quantized_tensor.ungrouped(np.floor(exact), weight.shape)).float()
    above = (below + 1).clamp(max=largest)
    fraction = torch.from_numpy(quantized_tensor.ungrouped(exact, weight.shape)).float() - below
    zero = torch.from_numpy(weight == 0)  # pruned weights stay zero
    step = torch.from_numpy(
        quantized_tensor.ungrouped(np.broadcast_to(scales, exact.shape).astype(np.float32), weight.shape).copy()
    )
    low, high = STRETCH
    inner = (fraction - low) / (high - low)  # in (0, 1): h starts at the float weight
    choice = torch.log(inner / (1 - inner)).requires_grad_()
    optimizer = torch.optim.Adam([choice], LEARNING_RATE)
    places = outputs[0].numel() // len(weight)
    size = min(len(inputs), max(4, PLACES // max(1, places)), MAX_BATCH)
    for count in range(steps):
        batch = torch.randint(len(inputs), (size,), generator=generator)
        soft = (torch.sigmoid(choice) * (high - low) + low).clamp(0, 1)
        codes = torch.where(zero, 0.0, below + soft * (above - below))
        output = functional_call(layer, {"weight": codes * step}, (inputs[batch],))
        error = (output - outputs[batch]).square()
        loss = error.sum(dim=1 if isinstance(layer, _ConvNd) else -1).mean()
        done = (count / steps - WARM_UP) / (1 - WARM_UP)
        if done > 0:
            beta = BETA[1] + (BETA[0] - BETA[1]) * (1 - done)
            loss = loss + REGULARIZATION * (1 - (2 * soft - 1).abs().pow(beta)).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        hard = torch.where(zero, 0.0, torch.where(choice > 0, above, below))
    rows = quantized_tensor.grouped(hard.numpy(), start.group)
    return quantized_tensor.of_codes(rows, weight.shape, start.scales, start.bits, start.group)
