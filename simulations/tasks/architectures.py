"""Architectures of the built-in tasks: choice by name, batch norm, other views of an image.

A view is a layer without parameters at the front of a student, so that the student takes the task's own inputs as any
other does: S. Gupta, J. Hoffman, J. Malik, "Cross Modal Distillation for Supervision Transfer", CVPR 2016,
section 3, where teacher and student see paired images of one scene, the student's of another kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedpress.simulations.tasks.registry import TaskError

Models = Mapping[str, Callable[[], nn.Module]]
"""Architectures by name; each makes a fresh model."""


def known(models: Models, name: str) -> str:
    """Return the name if it is one of an architecture.

    Args:
        models: Architectures by name.
        name: Name to look up.

    Raises:
        TaskError: There is no such architecture.
    """
    if name not in models:
        raise TaskError(f"task.model: got {name!r}, expected one of {', '.join(models)}")
    return name


def batch_normalized(model: nn.Sequential) -> nn.Sequential:
    """Return the layers of `model` with a batch norm behind each convolution, whose bias is removed as redundant."""
    layers: list[nn.Module] = []
    for layer in model:
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            layer.bias = None
            layers.append(nn.BatchNorm2d(layer.out_channels))
    return nn.Sequential(*layers)


def perceptron(inputs: int, *hidden: int, classes: int, view: nn.Module | None = None) -> nn.Sequential:
    """Return a multi-layer perceptron on the flattened input or, if there is one, on its `view`.

    Args:
        inputs: Number of values in one input, after the view.
        hidden: Units of each hidden layer.
        classes: Number of classes.
        view: A layer without parameters.
    """
    layers: list[nn.Module] = [view] if view is not None else []
    layers.append(nn.Flatten())
    sizes = (inputs, *hidden)
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


class LeftHalf(nn.Module):
    """Images (N, C, H, W) to their left halves, (N, C, H, W // 2).

    >>> LeftHalf()(torch.arange(4.0).reshape(1, 1, 1, 4)).tolist()
    [[[[0.0, 1.0]]]]
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the left halves of images, (N, C, H, W // 2)."""
        return images[..., : images.shape[-1] // 2]


class Coarse(nn.AvgPool2d):
    """Images (N, C, H, W) to the means of squares of `factor` pixels a side, (N, C, H // factor, W // factor).

    Args:
        factor: Side of a square, in pixels.
    """

    def __init__(self, factor: int) -> None:
        super().__init__(factor)


class Edges(nn.Module):
    """Images (N, 1, H, W) to the magnitude of their gradients, (N, 1, H - 1, W - 1).

    >>> Edges()(torch.tensor([[[[0.0, 0.0, 3.0], [0.0, 0.0, 3.0]]]])).tolist()
    [[[[0.0, 3.0]]]]
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the magnitude of the gradient, by differences of neighbors."""
        down = images[..., 1:, :-1] - images[..., :-1, :-1]
        across = images[..., :-1, 1:] - images[..., :-1, :-1]
        return torch.sqrt(down.square() + across.square())
