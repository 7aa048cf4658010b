"""A grid whose nodes are all gone."""

import time
from collections.abc import Iterable

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.server.superlink.linkstate.utils import create_message_error_unavailable_res_message
from flwr.serverapp import Grid

NODE = 7


class Deserted(Grid):
    """A grid whose nodes are all gone: each order is answered as the SuperLink does it."""

    set_run = create_message = run = None  # type: ignore[assignment]

    def get_node_ids(self) -> list[int]:
        return [NODE]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self._sent = list(messages)
        for number, message in enumerate(self._sent):
            message.metadata.__dict__["_message_id"] = f"order-{number}"
        return [message.metadata.message_id for message in self._sent]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        return [
            create_message_error_unavailable_res_message(message.metadata, "node_unavail")
            for message in self._sent
            if message.metadata.message_id in wanted
        ]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))


def order() -> Message:
    message = Message(RecordDict({"config": ConfigRecord({"a": 1})}), dst_node_id=NODE, message_type="train")
    message.metadata.__dict__.update(_created_at=time.time(), _ttl=100.0)
    return message
