"""Penalties: terms of a loss that drive weights, or whole channels, to zero before they are pruned.

* `l1`: single weights. R. Tibshirani, "Regression Shrinkage and Selection via the Lasso", JRSS B 58(1), 1996;
  S. Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NIPS 2015, section 3.1.
* `GroupLasso`: a channel, neuron or head with everything that depends on it. M. Yuan, Y. Lin, "Model selection and
  estimation in regression with grouped variables", JRSS B 68(1), 2006; W. Wen, C. Wu, Y. Wang, Y. Chen, H. Li,
  "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016, equation 3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.pruning import channel_groups, importance
from fedpress.compression.models.pruning.importance import Criterion

Penalty = Callable[[nn.Module], Tensor]
"""Maps the model in training to a term of the loss, a scalar; made for models of one architecture."""


def l1(model: nn.Module) -> Tensor:
    """Return the sum of the magnitudes of all weights of two or more dimensions, a scalar.

    >>> layer = nn.Linear(2, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.5, -2.0]]))
    >>> l1(layer).item()
    3.5
    """
    return torch.stack([weight.abs().sum() for weight in model.parameters() if weight.ndim > 1]).sum()


class GroupLasso:
    """Group lasso: the sum of sqrt(number of weights) * L2 norm over all prunable units of a model.

    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> penalty = GroupLasso(model, torch.zeros(1, 1))
    >>> for layer, numbers in ((model[0], [[3.0], [0.0]]), (model[2], [[4.0, 0.0]])):
    ...     _ = layer.weight.data.copy_(torch.tensor(numbers))
    >>> round(penalty(model).item(), 4)    # sqrt(2) * 5 for the first unit, nothing for the second
    7.0711

    Args:
        model: Model to trace; the penalty applies to all models with its names and shapes.
        example_input: Batch of inputs, (N, ...).
        criterion: Criterion that names layers whose channels stay, and so are not penalized.
    """

    def __init__(self, model: nn.Module, example_input: Batch, criterion: Criterion = importance.DEFAULT) -> None:
        weights = {
            f"{path}.weight".lstrip(".")
            for path, module in model.named_modules()
            if isinstance(module, _ConvNd | nn.Linear)
        }
        self._groups = [
            (group.units, [member for member in group.members if member.tensor in weights])
            for group in channel_groups.find(
                model, example_input, criterion.tracing.ignored, criterion.tracing.trace_seconds
            )
        ]

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty of a model, a scalar."""
        weights = dict(model.named_parameters())
        total = torch.zeros(())
        for count, parts in self._groups:
            squares, sizes = torch.zeros(count), torch.zeros(count)
            for part in parts:
                rows = weights[part.tensor].movedim(part.axis, 0).flatten(1)[part.positions]
                squares = squares + rows.square().sum((1, 2))
                sizes = sizes + float(rows[0].numel())
            # The square root's slope is infinite at zero; a unit of zeros gets no gradient.
            norms = torch.where(squares > 0, squares.clamp_min(1e-30).sqrt(), 0)
            total = total + (sizes.sqrt() * norms).sum()
        return total
