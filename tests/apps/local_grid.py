"""A grid whose nodes run a real ClientApp in this process, one message after the other; messages pass as bytes."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedpress.compression.messages import records

APP_FAILED = 2
"""Flower's code of the error for an app that has raised."""


class InstantClock:
    """A clock on which all replies are there at once: whoever waits, waits to the end."""

    def __init__(self) -> None:
        self._time = 0.0

    def now(self) -> float:
        return self._time

    def wait(self, until: float) -> None:
        """Move on to the end of the wait."""
        self._time = until


class LocalGrid(Grid):
    """Grid over clients in this process.

    Args:
        app: their app.
        clients: number of clients, with nodes from 1.
        run_config: their `context.run_config`.
        node_configs: additions to `context.node_config` by node.

    Attributes:
        passed: bytes of all messages, by direction.
        sent: all messages that were pushed.
    """

    def __init__(
        self,
        app: ClientApp,
        clients: int = 3,
        run_config: dict[str, Any] | None = None,
        node_configs: Mapping[int, Mapping[str, Any]] = MappingProxyType({}),
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
        self._app = app
        self._contexts = {
            node: Context(
                1,
                node,
                {"partition-id": node - 1, "num-partitions": clients, **node_configs.get(node, {})},
                RecordDict(),
                run_config or {},
            )
            for node in range(1, clients + 1)
        }
        self._replies: dict[str, Message] = {}
        self._ids: Iterator[int] = itertools.count(1)
        self.clock = InstantClock()
        self.passed = {"up": 0, "down": 0}
        self.sent: list[Message] = []

    def get_node_ids(self) -> list[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        pushed = []
        for message in messages:
            records.set_id(message, f"message {next(self._ids)}")
            self.passed["down"] += records.serialized_size(message)
            self.sent.append(message)
            received = records.message_from_bytes(records.message_to_bytes(message))
            try:
                reply = self._app(received, self._contexts[message.metadata.dst_node_id])
            except Exception as error:
                reply = Message(Error(APP_FAILED, f"{type(error).__name__}: {error}"), reply_to=received)
            records.set_id(reply, f"reply to {message.metadata.message_id}")
            self._replies[message.metadata.message_id] = records.message_from_bytes(records.message_to_bytes(reply))
            pushed.append(message.metadata.message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = [self._replies.pop(message_id) for message_id in list(message_ids) if message_id in self._replies]
        self.passed["up"] += sum(records.serialized_size(reply) for reply in replies)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

    # Of no use here.
    set_run = create_message = run = None  # type: ignore[assignment]
