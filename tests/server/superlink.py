"""Flower's SuperLink in this process: its own state, handlers and grid, with the HTTP between them left out."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from flwr.app import Message, RecordDict
from flwr.common.constant import HEARTBEAT_INTERVAL_INF, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.common.serde_utils import metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import (
    FLWR_IN_MEMORY_DB_NAME,
    HEAD_BODY_DIVIDER,
    HEAD_VALUE_DIVIDER,
    NOOP_FEDERATION_ID,
)
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_head_values_from_object_content,
    get_object_id,
    get_object_tree,
)
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import HttpGrid
from flwr.superlink.servicer.runtime import runtime_handlers

RUN = 1
HANDLERS = {
    "GetNodes": "get_nodes", "PushMessages": "push_messages", "PullMessages": "pull_messages",
    "PushObject": "push_object", "PullObject": "pull_object", "ConfirmMessageReceived": "confirm_message_received",
}  # fmt: skip


class SuperLink:
    """A SuperLink with one run and some nodes.

    Args:
        nodes: number of nodes.

    Attributes:
        grid: the server's end, as Flower hands it to a ServerApp.
        nodes: ids of the nodes, in order.
        calls: number of requests from the server's end, by name.
    """

    def __init__(self, nodes: int) -> None:
        factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
        state = factory.state()
        assert isinstance(state, InMemoryLinkState)
        self.state = state
        run = Run.create_empty(RUN)
        run.primary_task_id, run.federation_id = 1, NOOP_FEDERATION_ID
        self.task = Task(task_id=1, run_id=RUN)
        state.run_ids[RUN], state.task_store[1] = RunRecord(run=run), self.task
        self.nodes = sorted(self._registered(bytes([number] * 32)) for number in range(nodes))
        self.calls: Counter[str] = Counter()
        self.grid = HttpGrid(token="none")
        self.grid.set_run(run)
        vars(self.grid)["_client"] = self

    def _registered(self, key: bytes) -> int:
        node = self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, heartbeat_interval=HEARTBEAT_INTERVAL_INF)
        self.state.acknowledge_node_heartbeat(node_id=node, heartbeat_interval=HEARTBEAT_INTERVAL_INF)
        return int(node)

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        """Return what answers a request of the server's end."""
        if name not in HANDLERS:
            raise AttributeError(name)
        handler = getattr(runtime_handlers, HANDLERS[name])

        def answer(request: Any) -> Any:
            self.calls[name] += 1
            response = handler(type(request).FromString(request.SerializeToString()), self.state, self.task)
            return type(response).FromString(response.SerializeToString())

        return answer

    # ---- the nodes' end --------------------------------------------------------------------------------------------

    def order(self, node: int) -> Message:
        """Return the oldest message for a node, as it inflates there."""
        (stub,) = self.state.get_message_ins(node, limit=1)
        return stub

    def answer(self, reply: Message) -> None:
        """Push a reply as a node's own Flower does it."""
        vars(reply.metadata)["_message_id"] = reply.object_id
        objects = {name: each.deflate() for name, each in get_all_nested_objects(reply).items()}
        assert self.push(reply, get_object_tree(reply), objects)

    def answer_with(self, order: Message, content: tuple[str, dict[str, bytes]], **says: Any) -> None:
        """Push a reply whose objects are made by hand.

        Args:
            order: what is answered; the SuperLink looks at this alone.
            content: id of the content's object, and all objects below it by their ids.
            says: what the reply's own metadata say, by the names of `Metadata`'s fields.
        """
        root, objects = content
        stub = Message(RecordDict(), reply_to=order)
        stub.metadata.ttl -= 1  # it must end before that of the order
        inner = metadata_to_proto(stub.metadata)
        for name, value in says.items():
            setattr(inner, name, value)
        message, more = made("Message", [root], ProtoMessage(metadata=inner).SerializeToString())
        objects = {**objects, **more}
        vars(stub.metadata)["_message_id"] = message
        assert self.push(stub, ObjectTree(object_id=message, children=trees_of(root, objects)), objects)

    def push(self, stub: Message, tree: ObjectTree, objects: dict[str, bytes]) -> bool:
        """Push a reply as anybody can who speaks the protocol.

        Args:
            stub: metadata that the SuperLink looks at.
            tree: ids of the objects.
            objects: contents by id, which the SuperLink checks to be their hash.
        """
        assert all(get_object_id(content) == name for name, content in objects.items())
        session = self.state.start_session(RUN)
        own = message_from_proto(message_to_proto(stub))
        stored, missing = self.state.store_message_and_object_tree(own, tree, session)
        for name in missing:
            if name in objects:
                self.state.store_object(RUN, session, name, objects[name])
        return bool(stored)


def made(kind: str, children: list[str], body: bytes) -> tuple[str, dict[str, bytes]]:
    """Return id and content of an object as Flower writes them, whatever they make of each other."""
    head = HEAD_VALUE_DIVIDER.join((kind, ",".join(children), str(len(body)))).encode()
    content = head + HEAD_BODY_DIVIDER + body
    return get_object_id(content), {get_object_id(content): content}


def trees_of(root: str, objects: dict[str, bytes]) -> list[ObjectTree]:
    """Return the tree of some objects, as several that hang together where it is deeper than a request can be."""
    below: list[ObjectTree] = []

    def tree(name: str, depth: int) -> ObjectTree:
        _, children, _ = get_object_head_values_from_object_content(objects.get(name, b"none  0\0"))
        if depth == 50 and children:
            below.extend(trees_of(name, objects))
            children = []
        return ObjectTree(object_id=name, children=[tree(child, depth + 1) for child in children])

    whole = tree(root, 0)
    return [*below, whole]
