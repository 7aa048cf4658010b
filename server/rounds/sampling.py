"""Which nodes take part: a draw without replacement, from a seed, once enough are connected; of all nodes or some."""

import time
from collections.abc import Callable, Iterable, Sequence
from logging import INFO

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log

from fedpress.server._flower import Run


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


class PartOfGrid(Grid):
    """A grid of which only some nodes are seen.

    Args:
        grid: with all nodes.
        nodes: called for the ids of those that are seen, in order.
    """

    def __init__(self, grid: Grid, nodes: Callable[[], list[int]]) -> None:
        self._grid = grid
        self._nodes = nodes

    def set_run(self, run: Run) -> None:
        """As the whole grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """As the whole grid."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the whole grid."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes that are seen."""
        return self._nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the whole grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the whole grid."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As the whole grid."""
        return self._grid.send_and_receive(messages, timeout=timeout)
