"""Which nodes take part: a draw without replacement, from a seed, once enough of them are connected."""

import time
from collections.abc import Sequence
from logging import INFO

import numpy as np
from flwr.serverapp import Grid
from flwr.supercore import log


def available(grid: Grid, least: int) -> list[int]:
    """Return the ids of all nodes in order; waits until there are `least`."""
    waited = 0
    while len(nodes := sorted(grid.get_node_ids())) < least:
        if waited % 30 == 0:
            log(INFO, "Waiting for nodes: %d are connected, %d are needed", len(nodes), least)
        time.sleep(1)
        waited += 1
    return nodes


def draw(nodes: Sequence[int], count: int, seed: int) -> list[int]:
    """Return `count` of the nodes in order, or all where there are fewer."""
    if count < 1 or not nodes:
        return []
    chosen = np.random.default_rng(seed).choice(len(nodes), min(len(nodes), count), replace=False)
    return sorted(nodes[index] for index in chosen)
