"""A grid whose nodes are all gone, and one whose node answers nonsense."""

import time
from collections.abc import Iterable
from typing import Any

from flwr.app import ConfigRecord, Error, Message, RecordDict
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


class Answering(Deserted):
    """A grid whose node answers with the same records whatever it is sent."""

    def __init__(self, content: RecordDict | Error, node: int = NODE, **says: Any) -> None:
        self.content, self.node, self.says = content, node, says

    def get_node_ids(self) -> list[int]:
        return [self.node]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = []
        for message in self._sent:
            if message.metadata.message_id in message_ids:
                reply = Message(self.content, reply_to=message)
                vars(reply.metadata).update({f"_{name}": value for name, value in self.says.items()})
                replies.append(reply)
        return replies


def order() -> Message:
    message = Message(RecordDict({"config": ConfigRecord({"a": 1})}), dst_node_id=NODE, message_type="train")
    message.metadata.__dict__.update(_created_at=time.time(), _ttl=100.0)
    return message
