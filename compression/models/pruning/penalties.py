"""Penalties: terms of a loss that drive weights, or whole channels, to zero before they are pruned.

* `l1`: single weights. R. Tibshirani, "Regression Shrinkage and Selection via the Lasso", JRSS B 58(1), 1996;
  S. Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NIPS 2015, section 3.1.
* `GroupLasso`: a channel, neuron or head with everything that depends on it. M. Yuan, Y. Lin, "Model selection and
  estimation in regression with grouped variables", JRSS B 68(1), 2006; W. Wen, C. Wu, Y. Wang, Y. Chen, H. Li,
  "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016, equation 3.

Torch-Pruning's regularizing pruners (GroupNormPruner, GrowingRegPruner, BNScalePruner) cannot be used as terms of a
loss: they write into the gradients of one model object, so no copy can be trained with them; and they are ridge
penalties, or apply to batch norms only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fedpress.compression.models.pruning import channel_groups

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


class _Part(NamedTuple):
    """Slices of one parameter that belong to the units of a group.

    Attributes:
        name: Name of the parameter.
        axis: Axis of the channels.
        channels: Indices on that axis, int64 (c,).
        units: Unit of each of them, int64 (c,).
    """

    name: str
    axis: int
    channels: Tensor
    units: Tensor


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
    """

    def __init__(self, model: nn.Module, example_input: Tensor) -> None:
        probe = copy.deepcopy(model).cpu().eval()
        names = {id(parameter): name for name, parameter in probe.named_parameters()}
        _, groups = channel_groups.find(probe, example_input.detach().cpu())
        self._groups = [(len(group.units), _parts(group, names)) for group in groups]

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty of a model, a scalar."""
        weights = dict(model.named_parameters())
        total = torch.zeros(())
        for count, parts in self._groups:
            squares, sizes = torch.zeros(count), torch.zeros(count)
            for part in parts:
                rows = weights[part.name].movedim(part.axis, 0).flatten(1)[part.channels]
                squares = squares.index_add(0, part.units, rows.square().sum(1))
                sizes = sizes.index_add(0, part.units, torch.full((len(rows),), float(rows.shape[1])))
            # The square root's slope is infinite at zero; a unit of zeros gets no gradient.
            norms = torch.where(squares > 0, squares.clamp_min(1e-30).sqrt(), 0)
            total = total + (sizes.sqrt() * norms).sum()
        return total


def _parts(group: channel_groups.Group, names: dict[int, str]) -> list[_Part]:
    """Return the slices of convolutions' and linear layers' weights in a group, with their units."""
    unit_of = torch.empty(group.units.numel(), dtype=torch.int64)
    unit_of[group.units] = torch.arange(len(group.units))[:, None].expand_as(group.units)
    parts = []
    for index, (dep, channels) in enumerate(group.members):
        layer = dep.target.module
        outputs = dep.handler in (torch_pruning.prune_conv_out_channels, torch_pruning.prune_linear_out_channels)
        inputs = dep.handler in (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)
        grouped = isinstance(layer, _ConvNd) and layer.groups > 1  # its inputs are counted within a block
        if not (outputs or inputs) or (inputs and grouped) or id(layer.weight) not in names:
            continue
        transposed = isinstance(layer, _ConvNd) and layer.transposed
        roots = torch.tensor(group.members[index].root_idxs)
        axis = 0 if outputs != transposed else 1
        parts.append(_Part(names[id(layer.weight)], axis, torch.tensor(channels), unit_of[roots]))
    return parts
