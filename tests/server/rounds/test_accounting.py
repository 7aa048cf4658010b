"""Counters of a run: every byte has a round, a node and a kind, and a restored accounting counts on."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from tests.server.comparable import comparable

from fedpress.compression.ledger import Ledger
from fedpress.compression.messages import orders, records
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.update import Dense, Sparse, Update
from fedpress.server.checkpoint import state
from fedpress.server.rounds.accounting import Accounting, dense_sizes

LAYOUT = Layout((TensorSpec("a", (4,), "float32"), TensorSpec("b", (2, 3), "float32")))


@pytest.fixture
def message(monkeypatch: pytest.MonkeyPatch) -> Message:
    for name, value in (("_run_id", 1), ("_node_id", 1), ("_task_id", 0)):
        monkeypatch.setattr(TaskIdentity, name, value)
    content = RecordDict({"arrays": records.from_numpy({"w": np.zeros(9, np.float32)}), "m": MetricRecord({"n": 1})})
    return Message(content, dst_node_id=7, message_type="train")


def test_a_message_is_billed_in_full_also_where_a_record_was_measured_before(message: Message) -> None:
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    known = {id(arrays): records.item_size("arrays", arrays)}
    accounting = Accounting()
    accounting.bill(1, 7, "down", message)
    accounting.bill(2, 7, "up", message, known)
    size = records.serialized_size(message)
    assert accounting.ledger.total(direction="down") == accounting.ledger.total(direction="up") == size
    assert accounting.messages == {"up": 1, "down": 1}


@given(st.lists(st.sets(st.integers(0, LAYOUT.size - 1)), min_size=1, max_size=6), st.booleans())
def test_entries_are_counted_in_the_parameter_that_they_are_in(supports: list[set[int]], dense: bool) -> None:
    accounting = Accounting()
    updates: list[Update] = [
        Sparse(np.array(sorted(support), np.int64), np.ones(len(support), np.float32), LAYOUT.size)
        for support in supports
    ]
    if dense:
        updates.append(Dense(np.ones(LAYOUT.size, np.float32)))
    for update in updates:
        accounting.count_entries(update, LAYOUT)
    first = sum(sum(position < 4 for position in support) for support in supports) + 4 * dense
    second = sum(map(len, supports)) + LAYOUT.size * dense - first
    assert accounting.density_by_layer(LAYOUT) == [
        ("a", 4, pytest.approx(first / len(updates))), ("b", 6, pytest.approx(second / len(updates))),
    ]  # fmt: skip


def test_an_order_that_has_to_come_again_counts_once_and_evaluations_apart(message: Message) -> None:
    accounting = Accounting()
    asking = orders.write_answer(orders.Answer(1, 0, needs_model=True))
    refused = Message(RecordDict({orders.ANSWER: asking}), dst_node_id=1, message_type="train")
    evaluation = Message(message.content, dst_node_id=7, message_type="evaluate")
    for direction, sent in (
        ("down", message),
        ("up", refused),
        ("down", message),
        ("up", message),
        ("down", evaluation),
    ):
        accounting.bill(1, 7, direction, sent)  # type: ignore[arg-type]
    assert accounting.messages == {"up": 1, "down": 1}
    assert accounting.evaluations == {"up": 0, "down": 1}


def test_what_no_update_changes_is_not_trained_and_no_part_of_a_dense_message() -> None:
    accounting = Accounting()
    arrays = {
        "a": np.ones(4, np.float32),
        "b": np.ones((2, 3), np.float32),
        "norm.running_mean": np.ones(5, np.float32),
    }
    layout = Layout.of_arrays(arrays)
    assert accounting.trained(layout) == ["a", "b"]
    changes = np.zeros(10, np.float32)
    accounting.count_entries(Dense(changes), layout)
    assert accounting.trained(layout) == []
    changes[7] = 1
    accounting.count_entries(Dense(changes), layout)
    assert accounting.trained(layout) == ["b"]
    without = {name: array for name, array in arrays.items() if name != "a"}
    sizes = dense_sizes(records.from_numpy(arrays), ["b", "norm.running_mean"])
    assert sizes == dense_sizes(records.from_numpy(without), list(without))
    assert 4 * (6 + 5) < sizes.arrays < sizes.reply  # data with numpy's heads, without names and metrics
    accounting.messages, accounting.evaluations = {"up": 3, "down": 4}, {"up": 0, "down": 5}
    assert accounting.dense_bytes(records.from_numpy(arrays), layout) == (3 * sizes.reply, 9 * sizes.order)
    accounting.count_entries(Sparse(np.array([3]), np.ones(1, np.float32), 10), layout)
    assert accounting.trained(layout) == ["a", "b"]


def test_a_restored_accounting_counts_on(message: Message) -> None:
    accounting, again = Accounting(), Accounting()
    accounting.bill(1, 7, "down", message)
    accounting.refuse(1, 7, "late", "no reply")
    accounting.count_entries(Dense(np.ones(LAYOUT.size, np.float32)), LAYOUT)
    refusals = again.refusals
    again.restore(state.unpack(state.pack({"it": accounting.state()})).part("it", type(accounting.state())))
    assert again.refusals is refusals  # whoever holds the list sees the restored ones
    for each in (accounting, again):
        each.refuse(2, 8, "late", "no reply")
        each.bill(2, 8, "up", message)
    assert comparable(again.state()) == comparable(accounting.state())
    summary = again.summary(2, records.from_numpy({"w": np.zeros(1)}), None, None, 1, 3.0)
    assert (summary.replies, summary.reasons, summary.seconds) == (0, {"late": 1}, 3.0)
    assert (summary.up_bytes, summary.down_bytes) == (records.serialized_size(message), 0)


def test_the_ledger_comes_back_row_by_row() -> None:
    ledger, again = Ledger(), Ledger()
    ledger.record(1, 2**64 - 1, "up", "update", 12)
    ledger.record(2, 3, "down", "bundle", 0)
    again.record(9, 9, "up", "control", 9)
    again.replace(ledger.arrays())
    assert again.rows == ledger.rows
    assert (again.total(), again.total(round=9), again.total(direction="up")) == (12, 0, 12)
    again.replace(Ledger().arrays())
    assert again.rows == [] and again.total() == 0


def test_of_a_long_detail_the_beginning_is_kept_with_nothing_but_printables() -> None:
    accounting = Accounting()
    accounting.refuse(1, 7, "error", "no space\n\x1b[2Jleft\u202e " * 1_000_000)
    accounting.refuse_unexpected(2, 8, KeyError("\n"))
    long, short = accounting.refusals
    assert long.detail.isprintable() and len(long.detail) < 500
    assert long.detail.startswith("no space\\n\\x1b[2Jleft\\u202e") and long.detail.endswith("(19000000 characters)")
    assert short[2:] == ("malformed", r"KeyError: '\n'")
