"""Sampling of nodes: a seeded draw without replacement, once enough are connected."""

import time
from collections.abc import Callable, Iterable, Sequence
from logging import INFO

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log

from fedpress.server._flower import Run
from fedpress.server.rounds.settings import Sampling


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


class Sampler:
    """Sampling of a federation's nodes, round by round.

    Args:
        seed_of: returns the seed of a draw from the round and a purpose.
    """

    def __init__(self, seed_of: Callable[[int, str], int]) -> None:
        self._seed_of = seed_of
        self._round = 0
        self._attempts = 0  # a round that nobody answered may be asked again
        self._sampled: set[int] = set()  # nodes with an order in this round: each gets one, answered or not

    def begin(self, server_round: int, at_work: Iterable[int]) -> None:
        """Begin a round.

        Args:
            server_round: number of the round.
            at_work: nodes with an open order.
        """
        self._attempts = self._attempts + 1 if server_round == self._round else 0
        self._round = server_round
        self._sampled = set(at_work)

    def for_training(self, grid: Grid, sampling: Sampling, issued: int, more: int) -> list[int]:
        """Return nodes that had no order in this round, once enough are connected; later draws do not wait for that.

        Args:
            grid: grid of the nodes.
            sampling: fractions and numbers of nodes.
            issued: number of tickets so far, by which draws of one round differ.
            more: number of nodes beyond those that `sampling` asks for; negative: fewer, as so many are at work.
        """
        first = not self._sampled
        purpose = (
            f"train again {self._attempts}" if self._attempts and first else "train" if first else f"train {issued}"
        )
        least = sampling.min_train_nodes
        nodes = available(grid, max(least, sampling.min_available_nodes) if first else 0)
        wanted = max(int(len(nodes) * sampling.fraction_train), least) + more
        free = [node for node in nodes if node not in self._sampled]
        chosen = draw(free, wanted, self._seed_of(self._round, purpose))
        self._sampled.update(chosen)
        if first:
            log(INFO, "configure_%s: Sampled %d nodes (out of %d)", purpose, len(chosen), len(nodes))
        return chosen

    def for_evaluation(self, grid: Grid, sampling: Sampling, server_round: int) -> list[int]:
        """Return nodes that evaluate the model, once enough are connected.

        Args:
            grid: grid of the nodes.
            sampling: fractions and numbers of nodes.
            server_round: number of the round.
        """
        least = sampling.min_evaluate_nodes
        nodes = available(grid, max(least, sampling.min_available_nodes))
        wanted = max(int(len(nodes) * sampling.fraction_evaluate), least)
        chosen = draw(nodes, wanted, self._seed_of(server_round, "evaluate"))
        log(INFO, "configure_evaluate: Sampled %d nodes (out of %d)", len(chosen), len(nodes))
        return chosen


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
