"""Batches of training for models with batch normalization, of one example as well.

Batch normalization has no variance of one value: torch raises, and with it a client's whole training, because of the
last batch of a pass. A last batch of one example joins the one before it; where there is none, layers with one value a
channel use their running statistics, as in evaluation, and keep them (`lone_examples`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def normalizing(model: nn.Module) -> dict[str, nn.Module]:
    """Return the model's layers of batch normalization by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def split(order: Tensor, size: int, model: nn.Module) -> Sequence[Tensor]:
    """Return the batches of one pass.

    >>> [len(batch) for batch in split(torch.arange(7), 3, nn.Linear(1, 1))]
    [3, 3, 1]
    >>> [len(batch) for batch in split(torch.arange(7), 3, nn.BatchNorm1d(1))]
    [3, 4]

    Args:
        order: Indices of the examples, int64 (N,).
        size: Examples in a batch; the last may have fewer, and of a model with batch normalization one more.
        model: Model to train.
    """
    batches = torch.split(order, size)
    if size > 1 and len(batches) > 1 and len(batches[-1]) == 1 and normalizing(model):
        return (*batches[:-2], torch.cat(batches[-2:]))
    return batches


def count(examples: int, size: int, model: nn.Module) -> int:
    """Return the number of batches of one pass (`split`).

    Args:
        examples: N.
        size: Examples in a batch.
        model: Model to train.
    """
    return len(split(torch.empty(examples), size, model))


@contextmanager
def lone_examples(model: nn.Module) -> Iterator[None]:
    """Let batch normalization in training take one value a channel, of which there is no variance.

    Such a layer normalizes by its running statistics, which stay as they are; one without any raises, as ever.
    """

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        given = inputs[0]
        if module.training and getattr(module, "running_mean", None) is not None and given.numel() == given.shape[1]:
            module.training = False
            paused.append(module)

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if module in paused:
            paused.remove(module)
            module.training = True

    paused: list[nn.Module] = []
    handles = [
        handle
        for layer in normalizing(model).values()
        for handle in (layer.register_forward_pre_hook(before), layer.register_forward_hook(after, always_call=True))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
