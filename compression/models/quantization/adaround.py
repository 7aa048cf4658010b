"""Rounding up or down, whichever keeps the layer's answers: M. Nagel et al., "Up or Down? Adaptive Rounding for
Post-Training Quantization", ICML 2020.

Rounding each weight to the nearest is not best for the layer: its errors add up over the inputs. For one layer after
the other, with the inputs that it gets once the layers before it are quantized, a soft choice h(V) in [0, 1] between
the code below and the code above is trained so that the layer answers as the float layer does, and is pressed toward 0
or 1 as training goes on (section 3.2, equations 21 to 25, without the activation function).

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
from fedpress.compression.models.quantization import quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Quantized
from fedpress.compression.models.reproducible import reproducible

STEPS = 1000
PLACES = 512
"""Answers of a layer in a step: an example has one for each place of a convolution's output."""
MAX_BATCH = 64
LEARNING_RATE = 1e-2
REGULARIZATION = 0.01
WARM_UP = 0.2
"""Part of the steps before the choice is pressed toward up or down."""
BETA = (20.0, 2.0)
"""Of the regularization, from its first step to its last."""
STRETCH = (-0.1, 1.1)
"""h is a sigmoid stretched so far beyond 0 and 1 and cut off there, so that it reaches both."""
MAX_INPUTS = 1024


def rounded(
    model: nn.Module,
    nearest: Mapping[str, Quantized | NDArray[Any]],
    inputs: Tensor,
    *,
    steps: int = STEPS,
    seed: int,
) -> dict[str, Quantized]:
    """Return the tensors of convolutions and linear layers, rounded so that the layers' answers stay what they were.

    Args:
        model: With its float weights; untouched.
        nearest: The model rounded to nearest: its scales are taken, and its tensors of other layers.
        inputs: What the model is called with, (N, ...); at most `MAX_INPUTS` are used.
        steps: Of training, for each layer.
        seed: Of the order of the inputs.
    """
    with reproducible(seed) as generator:
        exact = copy.deepcopy(model).cpu().eval()
        rough = copy.deepcopy(exact)
        architecture.fill(rough, quantized_tensor.dequantize(nearest))
        batches = torch.split(inputs[:MAX_INPUTS], 256)
        quantized: dict[str, Quantized] = {}
        paths = [path for path, layer in exact.named_modules() if isinstance(layer, _ConvNd | nn.Linear)]
        for path in paths:
            name = f"{path}.weight" if path else "weight"
            start = nearest.get(name)
            layer, copied = exact.get_submodule(path), rough.get_submodule(path)
            if not isinstance(start, Quantized):  # tied to a tensor of another name
                continue
            wanted, given = _inputs(exact, layer, batches), _inputs(rough, copied, batches)
            if not len(given) or len(given) != len(wanted):
                continue
            with torch.no_grad():
                answers = torch.cat([layer(batch) for batch in torch.split(wanted, 256)])
            quantized[name] = _best(layer, start, given, answers, steps, generator)
            with torch.no_grad():
                copied.weight.copy_(torch.from_numpy(quantized_tensor.restore(quantized[name])))  # type: ignore[operator]
    return quantized


def _inputs(model: nn.Module, layer: nn.Module, batches: tuple[Tensor, ...]) -> Tensor:
    """What a layer is called with while the model answers `batches`; layers that are called in the order of modules
    see what the ones before them make of it."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        handle.remove()
    return torch.cat(seen) if seen else torch.empty(0)


def _best(
    layer: nn.Module, start: Quantized, inputs: Tensor, answers: Tensor, steps: int, generator: torch.Generator
) -> Quantized:
    weight = layer.weight.detach().float().numpy()  # type: ignore[operator]
    scales = np.where(start.scales > 0, start.scales, 1)[..., None]
    exact = quantized_tensor.grouped(weight, start.group).astype(np.float64) / scales
    most = quantized_tensor.levels(start.bits)
    exact = exact.clip(-most, most)
    below = torch.from_numpy(quantized_tensor.ungrouped(np.floor(exact), weight.shape)).float()
    above = (below + 1).clamp(max=most)
    part = torch.from_numpy(quantized_tensor.ungrouped(exact, weight.shape)).float() - below
    zero = torch.from_numpy(weight == 0)  # stays zero
    step = torch.from_numpy(
        quantized_tensor.ungrouped(np.broadcast_to(scales, exact.shape).astype(np.float32), weight.shape).copy()
    )
    low, high = STRETCH
    inner = (part - low) / (high - low)  # in (0, 1): h starts where the weight is
    choice = torch.log(inner / (1 - inner)).requires_grad_()
    optimizer = torch.optim.Adam([choice], LEARNING_RATE)
    places = answers[0].numel() // len(weight)
    size = min(len(inputs), max(4, PLACES // max(1, places)), MAX_BATCH)
    for count in range(steps):
        batch = torch.randint(len(inputs), (size,), generator=generator)
        soft = (torch.sigmoid(choice) * (high - low) + low).clamp(0, 1)
        codes = torch.where(zero, 0.0, below + soft * (above - below))
        answer = functional_call(layer, {"weight": codes * step}, (inputs[batch],))
        error = (answer - answers[batch]).square()
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
