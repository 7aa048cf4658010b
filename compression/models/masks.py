"""Masks of single weights, and training within them: what a mask lacks is zero and stays zero.

A mask is a dict from the name of a parameter to a bool tensor of its shape, true where a weight is there. It covers the
weights of at least two dimensions; biases and norms are few and stay whole. How masks are made is in `pruning.weights`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedpress.compression.errors import FedpressError

Masks = dict[str, Tensor]


class MaskError(FedpressError, ValueError):
    """A mask does not fit the model, or a weight that it lacks is not zero."""


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights that masks cover, by name, tied ones once: parameters of two or more dimensions."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.ndim > 1}


def apply(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the weights that the masks lack to zero, in place.

    Raises:
        MaskError: The masks do not fit the model.
    """
    weights = weights_of(model)
    check_fit(weights, masks)
    for name, mask in masks.items():
        weights[name].mul_(mask)


def check(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Check that what the masks lack is zero in the model.

    Raises:
        MaskError: It is not, or the masks do not fit the model.
    """
    weights = weights_of(model)
    check_fit(weights, masks)
    for name, mask in masks.items():
        if grown := int(weights[name][~mask].count_nonzero()):
            raise MaskError(
                f"{grown:,} weights of {name!r} are not zero though the mask lacks them: was the model trained outside"
                " `masks.train_within`?"
            )


def train_within(
    model: nn.Module, masks: Mapping[str, Tensor] | None, train: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """Return what `train` makes of the model, with every weight that the masks lack zero, in the steps between too.

    The model that `train` is called with computes with masked weights, and so does every deep copy of it, so gradients
    of what is not there are zero; any way of training will do that keeps the model's structure.

    Args:
        model: Where training starts from; untouched, as are the weights outside the mask.
        masks: Of this model; None: `train` does as it likes.
        train: From a model to the trained one, which may be the same object.

    Raises:
        MaskError: The masks do not fit the model.
    """
    if masks is None:
        return train(model)
    plain = copy.deepcopy(model)
    apply(plain, masks)
    masked = copy.deepcopy(plain)
    for name, mask in masks.items():
        path, _, attribute = name.rpartition(".")
        parametrize.register_parametrization(masked.get_submodule(path), attribute, _Masked(mask))
    trained = train(masked)
    # Filled by name: torch cannot take a parametrization off one of two copies without breaking the other.
    with torch.no_grad():
        for name, tensor in plain.state_dict(keep_vars=True).items():
            path, _, attribute = name.rpartition(".")
            tensor.copy_(getattr(trained.get_submodule(path), attribute))
    return plain


class _Masked(nn.Module):
    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def check_fit(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Check that masks are of these weights.

    Args:
        weights: By name, as `weights_of` gives them.
        masks: By name.

    Raises:
        MaskError: A name or a shape differs.
    """
    for name in masks.keys() | weights.keys():
        want = tuple(weights[name].shape) if name in weights else "none"
        got = tuple(masks[name].shape) if name in masks else "none"
        if want != got:
            raise MaskError(f"mask of {name!r}: got {got}, expected {want}; was it made for another model?")
