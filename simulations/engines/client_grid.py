"""Base of both simulation engines' grids: nodes are clients, numbered from 1 in the order of their indices."""

from __future__ import annotations

from abc import abstractmethod
from types import TracebackType
from typing import Self

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpress.compression.errors import FedpressError
from fedpress.simulations.engines import _flower
from fedpress.simulations.engines._flower import Run


class EngineError(FedpressError):
    """The engine cannot go on: the ClientApp does not load, or workers keep dying."""


def act_as_server(run: int = 1) -> None:
    """Let this process make messages as the server of a run, without an engine."""
    _flower.identify(run, 1, 0)


class ClientGrid(Grid):
    """Grid of simulated clients; use it as a context manager.

    Args:
        clients: Number of clients.
        workers: Number of processes that run them.
        run: The run that the grid belongs to.

    Raises:
        ValueError: There are no clients or no workers.
    """

    def __init__(self, clients: int, workers: int, run: Run) -> None:
        if clients < 1 or workers < 1:
            raise ValueError(f"clients and workers must be at least 1; they are {clients} and {workers}")
        self._clients = clients
        self._run = run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Stop the workers, and remove the clients' states unless they have a folder of their own."""

    def set_run(self, run: Run) -> None:
        """Set the run that this grid belongs to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that this grid belongs to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message, as Flower's `Grid` asks; `Message(...)` does the same.

        Args:
            content: Its records.
            message_type: Such as "train".
            dst_node_id: Id of the node.
            group_id: Such as the number of the round.
            ttl: Seconds to live; None: Flower's default.
        """
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes: client index + 1."""
        return list(range(1, self._clients + 1))

    def _client(self, message: Message) -> int:
        """Return the index of the client that a message is for.

        Raises:
            ValueError: There is no such node.
        """
        node = message.metadata.dst_node_id
        if not 1 <= node <= self._clients:
            raise ValueError(f"there is no node {node}; this grid has nodes 1 to {self._clients}")
        return node - 1
