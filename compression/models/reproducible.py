"""Torch's own randomness and threads, and a model's modes, borrowed and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def reproducible(seed: int) -> Iterator[torch.Generator]:
    """Run a block on one torch thread with its CPU generator seeded; both are as before afterwards.

    One thread, because sums over two threads add in another order and give other weights.

    Yields:
        A generator of the block's own with the same seed, for shuffles that must not depend on what layers draw.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield torch.Generator().manual_seed(seed)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block with the model in evaluation mode and without gradients; each module's mode is put back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
