"""A node that is gone: Flower's SuperLink answers in its place, in its own name."""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate.utils import create_message_error_unavailable_res_message
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedpress.server import app
from fedpress.server.publishing.publish import Published
from fedpress.server.rounds import exchange
from fedpress.server.rounds.accounting import Accounting
from fedpress.server.rounds.threaded_grid import PatientGrid

NODE = 7


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_run_id", 1), ("_node_id", 1), ("_task_id", 0)):
        monkeypatch.setattr(TaskIdentity, name, value)


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


def test_its_error_is_that_of_the_node() -> None:
    billed: list[tuple[int, str]] = []
    replies = exchange.exchange(
        Deserted(),
        exchange.WallClock(),
        1,
        [order()],
        exchange.UnderWay(),
        enough=lambda: False,
        limit=10.0,
        bill=lambda _round, node, direction, _message: billed.append((node, direction)),
        refuse=lambda *_: None,
        from_the_beginning=lambda _: order(),
    )
    (reply,) = replies
    assert reply.has_error() and reply.metadata.src_node_id == NODE != SUPERLINK_NODE_ID
    assert billed == [(NODE, "down"), (NODE, "up")]


def test_a_student_for_a_node_that_is_gone_is_a_delivery_that_failed(tmp_path: Path) -> None:
    bundle = tmp_path / "student.bundle"
    bundle.write_bytes(b"bundle")
    student: Any = SimpleNamespace(tier="phone", path=bundle, sha256="00")
    strategy = SimpleNamespace(tiers=["phone"], accounts={"": Accounting()})
    plan: Any = SimpleNamespace(strategy=strategy, downloads_per_tier=1)
    published: list[Published] = [student]
    (delivery,) = app.deliver(plan, Deserted(), 1, published)
    assert (delivery.node, delivery.accuracy, delivery.error) == (NODE, None, "the node is gone")


class BreaksOff(Deserted):
    """One answer is there and cannot be pulled, as where a node died while it sent it: Flower waits for the rest."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.handed_out = False
        self._claimed: set[str] = set()

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = []
        for reply in super().pull_messages(message_ids):
            message_id = reply.metadata.reply_to_message_id
            if message_id in self._claimed:
                continue  # a SuperLink hands a reply out once
            self._claimed.add(message_id)
            if message_id == "order-0":
                assert self.released.wait(60)
                self.handed_out = True
            found.append(reply)
            if message_id == "order-0" or len(self._claimed) < 2:
                break  # the next came a moment later
        return found


def test_an_answer_that_breaks_off_holds_up_neither_the_others_nor_the_deadline() -> None:
    broken, under_way = BreaksOff(), exchange.UnderWay()

    def replies(grid: Grid, orders: list[Message], limit: float) -> list[Message]:
        return list(
            exchange.exchange(
                grid, exchange.WallClock(0.05), 1, orders, under_way, enough=lambda: False, limit=limit,
                bill=lambda *_: None, refuse=lambda *_: None, from_the_beginning=lambda _: order(),
            )
        )  # fmt: skip

    grid = PatientGrid(broken, patience=0.2)
    began = time.monotonic()
    (other,) = replies(grid, [order(), order()], limit=1.0)
    assert other.metadata.reply_to_message_id == "order-1" and time.monotonic() - began < 10
    assert set(under_way.late) == {"order-0"}
    broken.released.set()
    while grid.pull_messages(["another"]) or not broken.handed_out:  # it is for nobody else
        time.sleep(0.01)
    (late,) = until_something(lambda: grid.pull_messages(["order-0"]))
    assert late.metadata.reply_to_message_id == "order-0"


def until_something(pull: Callable[[], list[Message]]) -> list[Message]:
    patience = time.monotonic() + 30
    while not (found := pull()):
        assert time.monotonic() < patience
        time.sleep(0.01)
    return found


def test_what_a_pull_raises_is_raised_once() -> None:
    class Fails(Deserted):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            raise ConnectionError("no SuperLink")

    grid = PatientGrid(Fails())
    with pytest.raises(ConnectionError, match="no SuperLink"):
        grid.pull_messages(["order-0"])
