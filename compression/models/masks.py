"""Masks of single weights, and training within them: weights outside a mask are zero and stay zero.

Masks are bool tensors by parameter name, of the parameters' shapes, true where a weight is kept. They cover parameters
of at least two dimensions; biases and norms are few and stay dense. `pruning.weights` makes masks.
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
    """A mask does not fit the model, or a weight outside it is not zero."""


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that masks cover, by name, tied ones once: parameters of two or more dimensions."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.ndim > 1}


def apply(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the weights outside the masks to zero, in place.

    Args:
        model: The model.
        masks: Masks of this model, by parameter name.

    Raises:
        MaskError: The masks do not fit the model.
    """
    weights = weights_of(model)
    check_fit(weights, masks)
    for name, mask in masks.items():
        weights[name].mul_(mask)


def check(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Check that the model's weights outside the masks are zero.

    Args:
        model: The model.
        masks: Masks of this model, by parameter name.

    Raises:
        MaskError: A weight is not zero, or the masks do not fit the model.
    """
    weights = weights_of(model)
    check_fit(weights, masks)
    for name, mask in masks.items():
        if grown := int(weights[name][~mask].count_nonzero()):
            raise MaskError(
                f"{grown:,} weights of {name!r} outside the mask are not zero: was the model trained outside"
                " `masks.train_within`?"
            )


def train_within(
    model: nn.Module, masks: Mapping[str, Tensor] | None, train: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """Return the model trained by `train`, its weights outside the masks zero before, during and after training.

    The model that `train` receives computes with masked weights, as does every deep copy of it, so the gradients of
    weights outside the masks are zero; any training that keeps the model's structure will do.

    Args:
        model: Starting point of the training; untouched.
        masks: Masks of this model, by parameter name; None: training is unrestricted.
        train: Maps a model to the trained one, which may be the same object.

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
    """Parametrization of a weight that is multiplied by its mask."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def check_fit(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Check that masks have the names and shapes of weights.

    Args:
        weights: Weights by name, as `weights_of` returns them.
        masks: Masks by name.

    Raises:
        MaskError: A name or a shape differs.
    """
    for name in masks.keys() | weights.keys():
        expected = tuple(weights[name].shape) if name in weights else "none"
        got = tuple(masks[name].shape) if name in masks else "none"
        if expected != got:
            raise MaskError(f"mask of {name!r}: got {got}, expected {expected}; was it made for another model?")
