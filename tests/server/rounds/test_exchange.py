"""The exchange: every message is billed once, late replies do not count, and a node that is gone is answered for."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from tests.server.deserted import NODE, Deserted, order

from fedpress.compression.messages import orders, records
from fedpress.server.rounds import exchange


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_run_id", 1), ("_node_id", 1), ("_task_id", 0)):
        monkeypatch.setattr(TaskIdentity, name, value)


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


class Ticking:
    """A clock that moves by a second with each wait."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wait(self, until: float) -> None:
        self.seconds += 1


class Delayed(Grid):
    """A grid whose nodes answer after a number of seconds, each its own; None: never."""

    set_run = create_message = run = send_and_receive = None  # type: ignore[assignment]

    def __init__(self, clock: Ticking, delays: list[int | None], needs_model: int = 0) -> None:
        self.clock, self.delays, self.needs_model = clock, delays, needs_model
        self.sent: dict[str, tuple[float, Message]] = {}

    def get_node_ids(self) -> list[int]:
        return list(range(len(self.delays)))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            delay = self.delays[message.metadata.dst_node_id]
            ids.append(f"order-{len(self.sent)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent[ids[-1]] = (math.inf if delay is None else self.clock.now() + delay, message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        ready = [name for name in message_ids if self.sent[name][0] <= self.clock.now()]
        replies = []
        for name in ready:
            message = self.sent[name][1]
            self.sent[name] = (math.inf, message)  # a reply is handed out once
            entries: dict[str, bool | int] = {"needs-model": True} if self.needs_model > 0 else {"ticket": 1}
            self.needs_model -= 1
            replies.append(Message(RecordDict({orders.ANSWER: ConfigRecord(entries)}), reply_to=message))
        return replies


def to(node: int) -> Message:
    return Message(RecordDict({"config": ConfigRecord()}), dst_node_id=node, message_type="train")


class Exchanges:
    """Exchanges on one grid, with their bills."""

    def __init__(self, grid: Delayed, refused: list[tuple[int, str]] | None = None) -> None:
        self.grid, self.under_way = grid, exchange.UnderWay()
        self.refused = [] if refused is None else refused
        self.bills: list[tuple[int, int, str]] = []
        self.resent: list[int] = []

    def nodes(self, server_round: int, nodes: list[int], enough: int = 99, **more: Any) -> list[int]:
        """Return the nodes whose replies count."""
        counted: list[int] = []

        def again(node: int) -> Message:
            self.resent.append(node)
            return to(node)

        for reply in exchange.exchange(
            self.grid, self.grid.clock, server_round, [to(node) for node in nodes], self.under_way,
            enough=lambda: len(counted) >= enough, limit=5.0, from_the_beginning=again,
            refuse=lambda _, node, reason, detail: self.refused.append((node, reason)),
            **{"bill": lambda number, node, direction, _: self.bills.append((number, node, direction)), **more},
        ):  # fmt: skip
            counted.append(reply.metadata.src_node_id)
        return counted


DELAYS = st.lists(st.none() | st.integers(0, 9), min_size=1, max_size=8)


@given(DELAYS, st.integers(1, 9))
def test_replies_in_time_count_until_there_are_enough_and_every_message_is_billed_once(
    delays: list[int | None], enough: int
) -> None:
    exchanges = Exchanges(Delayed(Ticking(), delays))
    nodes = list(range(len(delays)))
    counted = exchanges.nodes(1, nodes, enough)
    in_time = [node for node in nodes if (delay := delays[node]) is not None and delay <= 5]
    assert len(counted) == min(enough, len(in_time)) and set(counted) <= set(in_time)
    assert [delays[node] for node in counted] == sorted(delays[node] for node in counted)  # type: ignore[type-var]
    assert not exchanges.under_way.pending and not exchanges.under_way.nodes()
    # A later exchange bills what came late, to the round that it belongs to; it counts nothing of it.
    exchanges.grid.delays = [*delays, 4]
    exchanges.grid.clock.seconds += 10
    assert exchanges.nodes(2, [len(delays)]) == [len(delays)]
    answered = [node for node in nodes if delays[node] is not None]
    ups = [(number, node) for number, node, direction in exchanges.bills if direction == "up"]
    assert sorted(ups) == [*((1, node) for node in answered), (2, len(delays))]
    assert len(exchanges.bills) - len(ups) == len(nodes) + 1


def test_a_node_that_cannot_use_its_delta_is_sent_the_model_a_few_times() -> None:
    exchanges = Exchanges(Delayed(Ticking(), [0], needs_model=1))
    assert exchanges.nodes(1, [0]) == [0] and exchanges.resent == [0]
    exchanges = Exchanges(Delayed(Ticking(), [0], needs_model=99))
    assert exchanges.nodes(1, [0]) == [0]  # its last answer is handed on, to be refused
    assert exchanges.resent == [0] * exchange.MAX_RESENT


def test_with_a_buffer_orders_stay_open_from_one_exchange_to_the_next() -> None:
    exchanges = Exchanges(Delayed(Ticking(), [1, 3, 2, 1]))
    waiting = [2, 3]

    def refill(at_work: int) -> list[Message]:
        return [to(waiting.pop(0)) for _ in range(min(2 - at_work, len(waiting)))]

    assert exchanges.nodes(1, [0, 1], enough=1, refill=refill) == [0]
    assert exchanges.under_way.nodes() == {1}
    assert sorted(exchanges.nodes(2, [], enough=3, refill=refill)) == [1, 2, 3]


class Saying(Delayed):
    """A grid whose replies say what they like."""

    def __init__(self, clock: Ticking, delays: list[int | None], says: dict[int, dict[str, Any]]) -> None:
        super().__init__(clock, delays)
        self.says = says

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        for reply in replies:
            says = self.says.get(reply.metadata.src_node_id, {})
            vars(reply.metadata).update({f"_{name}": value for name, value in says.items()})
        return replies


@given(DELAYS, st.integers(0, 9), st.integers(0, 2**64 - 1))
def test_a_reply_in_another_nodes_name_is_billed_to_its_own_and_counts_for_nobody(
    delays: list[int | None], impostor: int, claimed: int
) -> None:
    impostor %= len(delays)
    refused: list[tuple[int, str]] = []
    exchanges = Exchanges(Saying(Ticking(), delays, {impostor: {"src_node_id": claimed}}), refused)
    nodes = list(range(len(delays)))
    in_time = [node for node in nodes if (delay := delays[node]) is not None and delay <= 5]
    counted = exchanges.nodes(1, nodes)
    assert sorted(counted) == [node for node in in_time if node != impostor or claimed == impostor]
    is_refused = impostor in in_time and claimed != impostor
    assert refused == [(impostor, "another sender")] * is_refused
    assert sorted(node for _, node, direction in exchanges.bills if direction == "up") == in_time


def test_a_reply_that_cannot_be_measured_is_refused() -> None:
    refused: list[tuple[int, str]] = []
    exchanges = Exchanges(Delayed(Ticking(), [0, 0]), refused)

    def bill(number: int, node: int, direction: str, message: Message) -> None:
        if direction == "up" and node == 0:
            records.serialized_size(Message(RecordDict({"\ud800": ConfigRecord()}), reply_to=message))

    assert exchanges.nodes(1, [0, 1], bill=bill) == [1]
    assert refused == [(0, "malformed")]
