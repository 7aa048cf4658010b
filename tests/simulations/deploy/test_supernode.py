"""An order whose run ends while a SuperNode fetches it: Flower's own functions, node state and object store."""

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _pull_and_store_message

from fedpress.simulations.deploy import flower_processes
from fedpress.simulations.deploy.supernode import repaired, restricted

RUN, NODE = 7, 12


class Node:
    """A SuperNode's state and store, and one order that the SuperLink has for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("_run_id", RUN), ("_node_id", 1), ("_task_id", 0)):
            monkeypatch.setattr(TaskIdentity, name, value)
        stores = ObjectStoreFactory()
        self.store, self.state = stores.store(), NodeStateFactory(stores).state()
        self.state.set_node_id(NODE)
        self.state.store_run(Run.create_empty(RUN))
        self.order = Message(RecordDict({"order": ConfigRecord({"round": 4})}), dst_node_id=NODE, message_type="train")
        self.order.metadata.__dict__["_message_id"] = self.order.object_id
        self.run: Run | None = None
        self.fab: Fab | None = None
        self.config: dict[str, str] = {}

    def fetch(self, how: Callable[..., int | None], failing: str = "") -> int | None:
        """Fetch the order; the SuperLink says at one of the calls that the run has ended."""
        objects = get_all_nested_objects(self.order)

        def call(name: str, result: Callable[..., Any]) -> Callable[..., Any]:
            def answer(*given: Any) -> Any:
                if name == failing:
                    raise RunNotRunningException
                return result(*given)

            return answer

        return how(
            state=self.state,
            object_store=self.store,
            node_config=self.config,
            receive=lambda: (self.order, get_object_tree(self.order)),
            get_run=lambda _: self.run,
            get_fab=lambda *_: self.fab,
            pull_object=call("pull_object", lambda _, object_id: objects[object_id].deflate()),
            confirm_message_received=call("confirm_message_received", lambda *_: None),
            trusted_entities=None,
        )

    @property
    def left(self) -> tuple[int, int]:
        """Orders that a ClientApp would be given, and tasks to start one for."""
        orders = self.state.get_messages_legacy(is_reply=False)
        return len(orders), len(self.state.get_tasks(statuses=["pending"]))


@pytest.mark.parametrize("call", ["pull_object", "confirm_message_received"])
def test_it_leaves_nothing(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)
    assert node.fetch(repaired(_pull_and_store_message), failing=call) is None
    assert node.left == (0, 0)
    assert node.fetch(repaired(_pull_and_store_message)) == RUN  # the next is as the first
    assert node.left == (1, 1)
    (task,) = node.state.get_tasks(statuses=["pending"])
    assert task.type == TaskType.CLIENT_APP


@pytest.mark.parametrize("call", ["pull_object", "confirm_message_received"])
def test_flower_leaves_it(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for the repair: once this fails, it can go."""
    node = Node(monkeypatch)
    assert node.fetch(_pull_and_store_message, failing=call) is None
    assert node.left == (1, 1)


def sent_app(folder: Path, client: str = "fedpress.client.app:app", **files: str) -> bytes:
    """An app as a server sends it."""
    app = flower_processes.write_app(folder, "app", "fedpress.server.app:app", client, {"rounds": 1})
    for name, text in files.items():
        (app / f"{name}.py").write_text(text)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for path in app.iterdir():
            archive.write(path, path.name)
    return data.getvalue()


@pytest.mark.parametrize(
    ("workloads", "changes", "reason"),
    [
        ("fedpress.simulations.runs.job:load", {}, ""),
        ("fedpress.simulations.runs.job:load", {"torch": "print('mine')"}, "sends an app with files of its own"),
        ("fedpress.simulations.runs.job:load", {"client": "os:system"}, "the ClientApp 'os:system'"),
        ("fedpress.simulations.runs.job:load other:app", {"client": "other:app"}, ""),
        ("*", {"torch": "print('mine')", "client": "app:app"}, ""),
        (None, {"torch": "print('mine')", "client": "app:app"}, ""),
    ],
)
def test_an_app_outside_the_nodes_list_is_not_kept_and_the_server_hears_why(
    workloads: str | None, changes: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = sent_app(tmp_path, **changes)
    node, other = Node(monkeypatch), RUN + 1
    node.order.metadata.__dict__["_run_id"] = other  # a run that the node does not know yet
    node.order.metadata.__dict__["_message_id"] = node.order.object_id
    node.run, node.fab = Run.create_empty(other), Fab(hashlib.sha256(data).hexdigest(), data, {})
    node.config = {} if workloads is None else {"workloads": workloads}
    assert node.fetch(restricted(repaired(_pull_and_store_message))) == other
    replies = node.state.get_messages_legacy(is_reply=True)
    if not reason:
        assert node.left == (1, 1) and not replies
        return
    assert node.left == (0, 0) and node.state.get_run(other) is None
    (reply,) = replies
    assert reply.metadata.reply_to_message_id == node.order.metadata.message_id
    assert reason in reply.error.reason and "`workloads" in reply.error.reason
