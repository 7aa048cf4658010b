"""Context managers that set generators and threads, or a model's training modes, and restore them afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def reproducible(seed: int) -> Iterator[torch.Generator]:
    """Run a block on one torch thread with the generators of torch (CPU), numpy and Python seeded; restore all of it.

    One thread, because sums over several threads are added in another order and give other weights.

    Args:
        seed: Seed of these generators, and of the one that is yielded.

    Yields:
        A second generator with the same seed, for shuffles that must not depend on what layers draw.
    """
    threads, of_numpy, of_python = torch.get_num_threads(), np.random.get_state(), random.getstate()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield torch.Generator().manual_seed(seed)
    finally:
        torch.set_num_threads(threads)
        np.random.set_state(of_numpy)
        random.setstate(of_python)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block with the model in evaluation mode and without gradients; restore each module's mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
