"""Names outside Flower's public API that the server uses; tests/test_flower_doors.py lists them.

Flower pulls all replies that are there in one call: it asks for their descriptions, fetches the objects of each, and
makes messages of them. One reply whose objects are no message ends that call, and the others are lost with it, as the
SuperLink hands out each once. Here the descriptions are asked for in one request, too, and each reply is then fetched
by Flower's own code in a call of its own.
"""

import copy
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode as ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_object_body, get_object_head_values_from_object_content
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry
from flwr.supercore.run import Run as Run

from fedpress.compression.messages import flower_version

flower_version.warn_if_untested()

MOST_FETCHED = 2 << 30
"""Largest size of a reply's objects, in bytes; more where an update of the model may take more."""
MOST_OBJECTS = 100_000
"""Most objects of a reply: each takes a request. A model has three for each tensor, and one for every 5 MiB of it."""
MOST_LIST = 16 << 20
"""Largest size of an object that only lists others, in bytes."""
EXPANSION = 4
"""Largest ratio of a reply in memory to its objects: one that refers to a piece many times grows without being sent."""
SPARE = 64 << 20
"""Added to that limit, in bytes: replies that repeat something small are fine."""


class Offered(NamedTuple):
    """A reply that the SuperLink holds, or may hold."""

    order: str  # id of the message that it answers
    pull: Callable[[], Iterable[Message]]


class OversizedReply(ValueError):
    """A reply that takes more memory than it may."""


class _OneReply:
    """Flower's client of the SuperLink, which offers one reply only and measures it as it is fetched.

    Args:
        client: Flower's client.
        response: the description of the reply.
        most: largest size of its objects, in bytes.
    """

    def __init__(self, client: Any, response: PullAppMessagesResponse, most: int) -> None:
        self._client = client
        self._response = response
        self._most = most
        self._lock = threading.Lock()  # Flower fetches several objects at a time
        self._fetched = 0
        self._sizes: dict[str, int] = {}
        self._children: dict[str, Counter[str]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:  # noqa: N802 (Flower's name)
        """Return the description of the reply."""
        return self._response

    def PullObject(self, request: Any) -> Any:  # noqa: N802
        """Fetch an object.

        Raises:
            OversizedReply: the objects so far are too large.
        """
        response = self._client.PullObject(request)
        if content := response.object_content:
            with self._lock:
                self._fetched += len(content)
                if self._fetched > self._most:
                    raise OversizedReply(f"the reply has more than {self._most} bytes")
                self._sizes[request.object_id] = len(content)
                self._children[request.object_id] = _references(content)
        return response

    def ConfirmMessageReceived(self, request: Any) -> Any:  # noqa: N802
        """Confirm that all objects are here; Flower makes the message of them next.

        Raises:
            OversizedReply: the message would be far larger than its objects.
        """
        confirmed = self._client.ConfirmMessageReceived(request)
        whole = self._expanded(request.message_object_id, {})
        if whole > EXPANSION * self._fetched + SPARE:
            raise OversizedReply(f"the reply has {self._fetched} bytes, and would take {whole} once it is put together")
        return confirmed

    def _expanded(self, object_id: str, known: dict[str, int]) -> int:
        """Return the size of an object with every object that it refers to, as often as it does."""
        if object_id not in known:
            known[object_id] = self._sizes.get(object_id, 0) + sum(
                times * self._expanded(child, known) for child, times in self._children.get(object_id, {}).items()
            )
        return known[object_id]


def offered(grid: Grid, message_ids: list[str], most: int = 0) -> list[Offered] | None:
    """Return the replies that the SuperLink holds, each to be pulled apart from the others.

    Args:
        grid: a grid of any kind.
        message_ids: ids of the orders.
        most: largest size of a reply's objects in bytes, where that is above `MOST_FETCHED`.

    Returns:
        The replies; None: the grid is none of Flower's over HTTP, and does not tell which replies are there.
    """
    client = getattr(grid, "_runtime_client", None)
    if client is None or "_client" not in vars(grid):
        return None
    response = client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
    replies = []
    for message, tree in zip(response.messages_list, response.message_object_trees, strict=True):
        one = copy.copy(grid)
        description = PullAppMessagesResponse(messages_list=[message], message_object_trees=[tree])
        vars(one)["_client"] = _OneReply(client, description, max(most, MOST_FETCHED))
        order = message.metadata.reply_to_message_id
        if _many(tree):
            replies.append(Offered(order, _refuse_many))
            continue
        replies.append(Offered(order, lambda one=one, order=order: one.pull_messages([order])))  # type: ignore[misc]
    return replies


def _many(tree: ObjectTree) -> bool:
    """Tell whether a reply has too many objects."""
    count, stack = 0, [tree]
    while stack and count <= MOST_OBJECTS:
        count += 1
        stack.extend(stack.pop().children)
    return count > MOST_OBJECTS


def _refuse_many() -> list[Message]:
    raise OversizedReply(f"the reply has more than {MOST_OBJECTS} objects")


def error_reply(order: str, reason: str) -> Message:
    """Return an error in place of a reply that cannot be used.

    Args:
        order: id of the message that it answers.
        reason: what is wrong with it.
    """
    metadata = Metadata(
        run_id=0, message_id="", src_node_id=0, dst_node_id=0, reply_to_message_id=order, group_id="", created_at=0.0,
        ttl=0.0, message_type="query",
    )  # fmt: skip
    return make_message(metadata, error=Error(ErrorCode.UNKNOWN, reason))


def _references(content: bytes) -> Counter[str]:
    """Return how often an object refers to each of its children.

    Raises:
        OversizedReply: the object lists others, and is too large for that.
    """
    kind, children, _ = get_object_head_values_from_object_content(content)
    if not children:
        return Counter()
    if len(content) > MOST_LIST:
        raise OversizedReply(f"an object of kind {kind[:20]!r} has {len(content)} bytes, expected at most {MOST_LIST}")
    body = get_object_body(content, inflatable_class_registry[kind]) if kind != "Message" else b""
    if not body:
        return Counter(children)
    listed = json.loads(body)
    if kind == "Array":
        return Counter(children[index] for index in listed["arraychunk_ids"])
    return Counter(listed.values())
