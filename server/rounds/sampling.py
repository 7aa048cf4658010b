"""Sampling of nodes: a seeded draw without replacement, once enough are connected."""

import time
from collections.abc import Callable, Iterable, Sequence
from logging import INFO

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log

from fedpress.server._flower import Run


def available(grid: Grid, least: int) -> list[int]:
    """Return the ids of all connected nodes, in order, once there are enough.

    Args:
        grid: grid of the nodes.
        least: number of nodes to wait for.
    """
    waited = 0
    while len(nodes := sorted(grid.get_node_ids())) < least:
        if waited % 30 == 0:
            log(INFO, "Waiting for nodes: %d are connected, %d are needed", len(nodes), least)
        time.sleep(1)
        waited += 1
    return nodes


def draw(nodes: Sequence[int], count: int, seed: int) -> list[int]:
    """Return nodes drawn without replacement, in order.

    Args:
        nodes: ids of the nodes.
        count: number to draw; all are returned where there are fewer.
        seed: seed of the draw.
    """
    if count < 1 or not nodes:
        return []
    chosen = np.random.default_rng(seed).choice(len(nodes), min(len(nodes), count), replace=False)
    return sorted(nodes[index] for index in chosen)


class PartOfGrid(Grid):
    """A grid that shows only some of another grid's nodes.

    Args:
        grid: grid with all nodes.
        nodes: returns the ids of the visible nodes, in order.
    """

    def __init__(self, grid: Grid, nodes: Callable[[], list[int]]) -> None:
        self._grid = grid
        self._nodes = nodes

    def set_run(self, run: Run) -> None:
        """Pass on to the whole grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Pass on to the whole grid.

        Args:
            content: records of the message.
            message_type: message type, such as train.
            dst_node_id: id of the node that gets it.
            group_id: group of messages that it belongs to.
            ttl: seconds that it lives; None: Flower's default.
        """
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the visible nodes."""
        return self._nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on to the whole grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on to the whole grid."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Pass on to the whole grid.

        Args:
            messages: the messages.
            timeout: seconds to wait for replies; None: until all are in.
        """
        return self._grid.send_and_receive(messages, timeout=timeout)
