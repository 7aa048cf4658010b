"""Replies pulled in threads: one that breaks off delays neither the others nor the end of a round."""

import threading
import time
from collections.abc import Callable, Iterable

import pytest
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from tests.server.deserted import Deserted, order

from fedpress.server.rounds import exchange
from fedpress.server.rounds.threaded_grid import PatientGrid


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_run_id", 1), ("_node_id", 1), ("_task_id", 0)):
        monkeypatch.setattr(TaskIdentity, name, value)


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


def test_where_the_grid_itself_fails_it_says_so() -> None:
    class Fails(Deserted):
        def get_node_ids(self) -> list[int]:
            raise ConnectionError("no SuperLink")

        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            raise ConnectionError("no SuperLink")

    grid = PatientGrid(Fails())
    with pytest.raises(ConnectionError, match="no SuperLink"):
        grid.pull_messages(["order-0"])
