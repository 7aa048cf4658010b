"""Tensors that a module has computed and keeps as attributes: weights made of others before a pass, attention maps.

`torch.nn.utils.weight_norm`, `torch.nn.utils.prune` and modules that keep what they returned hold tensors with a graph
that made them. Such a module cannot be copied (`copy.deepcopy`), and holds the activations of its last batch.
"""

from __future__ import annotations

from torch import Tensor, nn


def detach(model: nn.Module) -> None:
    """Cut off the graphs of a model's computed attributes; their values stay, and parameters and buffers as they are.

    Law: the model can be copied afterwards, and its outputs and gradients are those that it had.

    Args:
        model: Changed in place.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                vars(module)[name] = value.detach()
