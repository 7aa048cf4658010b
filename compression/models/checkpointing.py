"""Gradient checkpointing: what is inside a block is computed again in the backward pass, instead of being kept.

T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. Models of Hugging Face have a switch of their
own, which knows their caches; of any other model, the blocks are modules with layers inside that stand in a list
(`nn.ModuleList`, `nn.Sequential`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from fedpress.compression.errors import FedpressError
from fedpress.compression.models import batches

_LISTS = (nn.ModuleList, nn.Sequential)


class NoBlocks(FedpressError, ValueError):
    """A model has no block that could be computed again."""


@contextmanager
def checkpointing(model: nn.Module) -> Iterator[None]:
    """Run a block of code with the model's blocks computed again in each backward pass.

    Law: gradients, buffers and what the model draws are the same as without.

    Args:
        model: The model; left as it was.

    Raises:
        NoBlocks: It has neither blocks nor a switch of its own.
    """
    switches = _switches(model)
    switched = {module for switch in switches for module in switch.modules()}
    found: list[Any] = [block for block in blocks(model) if switched.isdisjoint(block.modules())]
    if not switches and not found:
        raise NoBlocks(
            f"training.gradient_checkpointing: {type(model).__name__} has no block to compute again: it has no"
            " gradient_checkpointing_enable(), and no ModuleList or Sequential of modules with layers inside; switch"
            " it off, or put its blocks into such a list"
        )
    for module in switches:
        _switch(module, "enable")({"use_reentrant": False})
    for block in found:
        block.forward = _again(block, block.forward)
    try:
        yield
    finally:
        for block in found:
            del block.forward
        for module in switches:
            _switch(module, "disable")()


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model: modules with layers inside, of its outermost stacks.

    A stack is a list with several of a class, such as the layers of a transformer. Of other elements of a list, and of
    lists inside lists, the stacks inside count, if there are any.

    >>> stack = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), nn.ReLU()))
    >>> blocks(stack) == [stack[1]]
    True
    """
    found: list[nn.Module] = []
    for child in model.children():
        inside = blocks(child)
        if not isinstance(model, _LISTS) or isinstance(child, nn.ModuleList) or not any(True for _ in child.children()):
            found += inside
            continue
        alike = sum(type(other) is type(child) for other in model.children()) > 1 and not isinstance(child, _LISTS)
        found += [child] if alike or not inside else inside
    return list(dict.fromkeys(found))


def _switches(model: nn.Module) -> list[Any]:
    """Return the modules of Hugging Face in a model, none of them inside another one.

    Those with batch normalization are not among them: their switch moves its running statistics twice.
    """
    if getattr(model, "supports_gradient_checkpointing", False) and hasattr(model, "gradient_checkpointing_enable"):
        return [] if batches.normalizing(model) else [model]
    return [switch for child in model.children() for switch in _switches(child)]


def _switch(module: nn.Module, what: str) -> Callable[..., None]:
    """Return the method that enables or disables it, by its name since transformers 5.24, or the one before."""
    names = (f"activation_checkpointing_{what}", f"gradient_checkpointing_{what}")
    method: Callable[..., None] = getattr(module, next(name for name in names if hasattr(module, name)))
    return method


def _again(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _running_statistics_as_they_are(block)

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return checkpointed


@contextmanager
def _running_statistics_as_they_are(block: nn.Module) -> Iterator[None]:
    """Let normalization by batch leave its running statistics alone, which the first pass has moved already."""
    tracking: list[Any] = [
        module for module in block.modules() if isinstance(module, _NormBase) and module.running_mean is not None
    ]
    momenta = [module.momentum for module in tracking]
    counts = [module.num_batches_tracked.clone() for module in tracking]
    for module in tracking:
        module.momentum = 0.0  # the share of this batch in them
    try:
        yield
    finally:
        for module, momentum, count in zip(tracking, momenta, counts, strict=True):
            module.momentum = momentum
            module.num_batches_tracked.copy_(count)
