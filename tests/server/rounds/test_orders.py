"""Orders and verdicts: one reply fits an open ticket, and whatever does not fit is refused with its reason."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.messages import orders as wire
from fedpress.compression.messages import records
from fedpress.compression.messages.orders import Answer, Order
from fedpress.compression.models.pruning import dynamic_sparsity
from fedpress.compression.tensors import buffer_codec
from fedpress.compression.tensors.layout import Layout
from fedpress.server.model import optimizers
from fedpress.server.model.global_model import GlobalModel
from fedpress.server.model.mask_schedules import VoteRequest
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.accounting import Accounting
from fedpress.server.rounds.orders import GUESS_BITS, Orders, Tickets, Upload

NODE = 7


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_run_id", 1), ("_node_id", 1), ("_task_id", 0)):
        monkeypatch.setattr(TaskIdentity, name, value)


def model(downlink: Downlink | None = None) -> GlobalModel:
    arrays = records.from_numpy({"weight": np.linspace(-1, 1, 400).astype(np.float32)})
    return GlobalModel(arrays, None, optimizers.sgd(), downlink)


def moved(made: GlobalModel) -> GlobalModel:
    made.step(np.full(400, 0.1, np.float32), {})
    return made


def fresh() -> Orders:
    return Orders("fed", "arrays", "config", Accounting())


def reply_to(message: Message, **changes: Any) -> Message:
    order = wire.read_order(message.content)
    tag = order.download.tag if order.download else b""
    answer = Answer(**{"ticket": order.ticket, "version": order.version, "payload": b"update", "tag": tag, **changes})
    content = RecordDict({wire.ANSWER: wire.write_answer(answer), "metrics": MetricRecord({"num-examples": 3})})
    return Message(records.folded(content), reply_to=message)


def verified(orders: Orders, reply: Message, made: GlobalModel, most: int | None = None) -> Upload | None:
    return orders.verify(reply, lambda content: 3.0, made, 1, most)


def order_of(message: Message) -> Order:
    return wire.read_order(message.content)


@pytest.mark.parametrize("downlink", [None, Downlink(0.1)])
def test_buffers_that_a_late_reply_leaves_out_are_those_it_trained_from(downlink: Downlink | None) -> None:
    arrays = {"weight": np.linspace(-1, 1, 400), "n.running_mean": np.ones(2), "table": np.arange(9)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    layout = Layout.of_arrays(arrays, buffers=["table"])
    made, orders = GlobalModel(records.from_numpy(arrays), layout, optimizers.sgd(), downlink), fresh()
    first = orders.train(NODE, 1, {}, made)
    made.step(np.zeros(400, np.float32), {**made.buffers, "n.running_mean": np.full(2, 5, np.float32)})
    before = buffer_codec.pack(arrays, layout)
    upload = verified(orders, reply_to(first, buffers=buffer_codec.pack_changes(before, [False, False], layout)), made)
    assert upload is not None and (upload.buffers, upload.staleness) == (before, 1)
    second, after = orders.train(NODE, 2, {}, made), buffer_codec.pack(dict(made.buffers), layout)
    assert made.sent_buffers == after
    if downlink:  # what has changed since, and nothing else
        assert order_of(second).download.buffers == buffer_codec.pack_changes(  # type: ignore[union-attr]
            after, [True, False], layout
        )
    bad = buffer_codec.pack_changes(before, [False, False], layout)  # of another version
    assert verified(orders, reply_to(second, buffers=bad), made) is None


def test_an_order_names_the_last_upload_that_was_accepted() -> None:
    orders, made = fresh(), model()
    first = orders.train(NODE, 1, {"lr": 0.1}, made)
    assert first.metadata.dst_node_id == NODE and first.content.config_records["config"]["lr"] == 0.1
    ticket = order_of(first).ticket
    assert ticket > 0 and order_of(first).accepted == 0
    upload = verified(orders, reply_to(first, lost_state=True, tier="phone"), made)
    assert upload is not None and (upload.payload, upload.weight, upload.staleness) == (b"update", 3.0, 0)
    orders.accept(upload)
    assert (orders.tickets.tiers, orders.tickets.open) == ({NODE: "phone"}, {})
    assert order_of(orders.train(NODE, 2, {}, made)).accepted == ticket
    assert order_of(orders.train(8, 2, {}, made)).accepted == 0


@given(st.lists(st.tuples(st.integers(1, 4), st.none() | st.integers(0, wire.MAX_TICKET))))
def test_the_tickets_of_each_node_rise_whatever_is_claimed_and_one_node_moves_only_its_own(
    steps: list[tuple[int, int | None]],
) -> None:
    tickets, claimed = Tickets(), dict[int, int]()
    last: dict[int, int] = {}
    for node, answered in steps:
        if answered is not None:
            tickets.follow(node, answered)
            claimed[node] = max(claimed.get(node, 0), answered)
        ticket = tickets.issue(node)
        assert max(last.get(node, 0), claimed.get(node, 0)) < ticket < 2**63
        last[node] = ticket
    if len(claimed) < 2:
        others = [ticket for node, ticket in last.items() if node not in claimed]
        assert all(ticket >> GUESS_BITS <= len(steps) for ticket in others)


def test_a_ticket_cannot_be_told_from_those_before_and_a_seed_gives_the_same_ones() -> None:
    first, second = Tickets(), Tickets()
    assert [first.issue(1) for _ in range(9)] != [second.issue(1) for _ in range(9)]
    same = [Tickets(secret=b"seed"), Tickets(secret=b"seed")]
    assert same[0].issue(1) == same[1].issue(1)
    assert len({Tickets(secret=b"seed").issue(node) for node in range(99)}) == 99


def test_an_upload_that_no_model_can_need_is_refused_before_it_is_kept() -> None:
    accounting = Accounting()
    orders, made = Orders("fed", "arrays", "config", accounting), model()
    message = orders.train(NODE, 1, {}, made)
    for changes in ({"payload": bytes(100_000)}, {"buffers": bytes(100_000)}, {"vote": bytes(100_000)}):
        assert verified(orders, reply_to(message, **changes), made) is None
        assert "of 100000 bytes" in accounting.refusals[-1].detail


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ticket": 9}, "wrong ticket"), ({"version": 5}, "wrong version"), ({"tag": b"12345678"}, "wrong model"),
        ({"error": "NaN"}, "client error"), ({"needs_model": True}, "no model"),
    ],
)  # fmt: skip
def test_a_reply_that_does_not_fit_leaves_the_order_open(changes: dict[str, Any], reason: str) -> None:
    accounting = Accounting()
    orders, made = Orders("fed", "arrays", "config", accounting), model(Downlink(0.1))
    message = orders.train(NODE, 1, {}, made)
    assert verified(orders, reply_to(message, **changes), made) is None
    assert [(refusal.node, refusal.reason) for refusal in accounting.refusals] == [(NODE, reason)]
    assert verified(orders, reply_to(message), made) is not None  # the true one still counts
    assert verified(orders, reply_to(message), made) is None  # once
    assert accounting.refusals[-1].reason == "wrong ticket"


def test_a_reply_without_an_answer_is_refused_with_the_likely_mistake() -> None:
    accounting = Accounting()
    orders, made = Orders("fed", "arrays", "config", accounting), model()
    message = orders.train(NODE, 1, {}, made)
    dense = Message(RecordDict({"arrays": made.arrays, "metrics": MetricRecord({"num-examples": 3})}), reply_to=message)
    assert verified(orders, dense, made) is None
    assert accounting.refusals[0].reason == "malformed" and "compress(...)" in accounting.refusals[0].detail


def test_an_update_that_is_too_far_behind_is_refused() -> None:
    accounting = Accounting()
    orders, made = Orders("fed", "arrays", "config", accounting), model()
    messages = [orders.train(node, 1, {}, made) for node in (1, 2)]
    moved(moved(made))
    upload = verified(orders, reply_to(messages[0]), made, most=2)
    assert upload is not None and upload.staleness == 2
    assert verified(orders, reply_to(messages[1]), made, most=1) is None
    assert accounting.refusals[0].reason == "stale"


def test_an_update_within_another_mask_is_refused() -> None:
    accounting = Accounting()
    orders, made = Orders("fed", "arrays", "config", accounting), model()
    message = orders.train(NODE, 1, {}, made)
    mask = dynamic_sparsity.random_mask(made.layout, 0.5, 1, "layer")
    made.step(np.full(400, 0.1, np.float32), {}, next_mask=lambda master, layout: mask)
    assert verified(orders, reply_to(message), made) is None
    assert accounting.refusals[0].reason == "other mask"


def test_a_node_gets_a_delta_once_it_has_shown_its_version_and_the_whole_model_where_it_cannot_use_one() -> None:
    orders, made = fresh(), model(Downlink(0.1))
    first = orders.train(NODE, 1, {}, made, VoteRequest(0.2, 0.3))
    assert first.content.array_records and (order_of(first).drop, order_of(first).grow) == (0.2, 0.3)
    assert verified(orders, reply_to(first), made) is not None
    second = orders.train(NODE, 2, {}, moved(made), VoteRequest(0.2, 0.3))
    download = order_of(second).download
    assert not second.content.array_records and download is not None and download.base == 0 and download.delta
    again = orders.from_the_beginning(NODE, 2, MessageType.TRAIN, {}, made)
    assert again.content.array_records and order_of(again).ticket == order_of(second).ticket
    assert (order_of(again).drop, order_of(again).grow) == (0.2, 0.3)
    assert verified(orders, reply_to(again), made) is not None


def test_an_evaluation_shows_the_version_that_a_node_holds() -> None:
    orders, made = fresh(), moved(model(Downlink(0.1)))
    message = orders.evaluate(NODE, 1, {}, made)
    assert message.metadata.message_type == MessageType.EVALUATE and not orders.tickets.open
    with pytest.raises(wire.MessageError, match="holds another model"):
        orders.evaluated(RecordDict({wire.ANSWER: wire.write_answer(Answer(0, 1, tag=b"12345678"))}), NODE, made)
    assert orders.tickets.versions == {}
    orders.evaluated(records.unfolded(reply_to(message).content), NODE, made)
    assert orders.tickets.versions == {NODE: 1}
    orders.evaluated(RecordDict({"any": ConfigRecord()}), NODE, model())  # clients hold no version: nothing to learn
