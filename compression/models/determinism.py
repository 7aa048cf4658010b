"""Torch's own randomness and threads, borrowed and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
