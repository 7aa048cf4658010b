"""Running statistics of batch normalization, measured for given weights.

A running mean or variance is true of the weights that it was measured with. Local training moves all weights, and
leaves statistics of where it went; what a sparse update brings to the global model is a small part of that way. So
clients measure the statistics of the model that they received, by a forward pass over their examples, and send those
(docs/decisions/0023-running-statistics.md).
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import trainable
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.models.reproducible import evaluating


def measure(model: nn.Module, inputs: Inputs, batch_size: int = 256, most: int = 1024) -> dict[str, NDArray[Any]]:
    """Return the running means and variances of a model as it is, each the mean over batches; the model stays the same.

    Everything but the normalization is in evaluation mode: nothing is dropped. Layers without running statistics, and
    those that stay in evaluation mode when the model is set to train, are left out, and so are layers whose parameters
    are frozen: they normalize by the statistics that they have.

    Args:
        model: Model whose weights count, of any mode; restored afterwards.
        inputs: Inputs (N, ...), on any device.
        batch_size: Inputs in a batch; all batches have nearly equal size, so that none is of one input.
        most: Largest number of inputs, taken at equal distances.

    Returns:
        Arrays by the names of the buffers, bfloat16 as uint16 patterns. Empty: the model has no such layer, or there
        are fewer than two inputs.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> statistics = measure(model, torch.tensor([[1.0], [3.0]]))
    >>> {name: array.tolist() for name, array in statistics.items()}
    {'0.running_mean': [2.0], '0.running_var': [2.0]}
    """
    frozen = trainable.frozen_statistics(model)
    with evaluating(model):
        model.train()
        norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _NormBase)
            and module.training
            and module.running_mean is not None
            and name not in frozen
        }
        given = model_inputs.count(inputs)
        count = min(most, given)
        if not norms or count < 2:
            return {}
        kept = [(module, module.momentum, [buffer.clone() for buffer in module.buffers()]) for module in norms.values()]
        try:
            model.eval()
            for module in norms.values():
                module.train()
                module.reset_running_stats()
                module.momentum = None  # the mean over all batches
            chosen = torch.linspace(0, given - 1, count).round().long()
            device = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), "cpu")
            for rows in torch.tensor_split(chosen, max(1, count // batch_size)):
                model_inputs.call(model, model_inputs.to(model_inputs.take(inputs, rows), device))
            return {
                f"{name}.{part}" if name else part: _array(getattr(module, part))
                for name, module in norms.items()
                for part in ("running_mean", "running_var")
            }
        finally:
            for module, momentum, buffers in kept:
                module.momentum = momentum
                for buffer, value in zip(module.buffers(), buffers, strict=True):
                    buffer.copy_(value)


def _array(buffer: Tensor) -> NDArray[Any]:
    value = buffer.detach().cpu()
    return (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy().copy()
