"""One client costs one client: rounds with a node that answers whatever can be sent.

The real strategy, mod and checkpoints; the third of three nodes is hostile. Law, for whatever it sends: the run goes
on, and can be resumed from its checkpoint; where its reply does not count, the rounds end as those in which that node
fails; the refusal names node and reason in a short, printable text; of the other nodes, accepted + residual == trained;
the ledger's sums are the sizes of what they sent.
"""

import functools
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.common import serde
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.hostile import CONTENTS, ENTRIES, FAILURES, NAMES, SAYS, TEXTS

from fedpress.client import mod
from fedpress.client.state import stores
from fedpress.client.state.memory import Memory
from fedpress.compression.encoders import encoder, error_feedback, selection
from fedpress.compression.messages import orders, records
from fedpress.compression.models.pruning import dynamic_sparsity
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Sparse
from fedpress.compression.wire import payloads, values
from fedpress.server.model import optimizers
from fedpress.server.model.mask_schedules import Sparsity
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.aggregate import LARGEST
from fedpress.server.rounds.buffered import Buffered
from fedpress.server.rounds.settings import Rounds
from fedpress.server.strategies.sparse_fed import SparseFed

SIZE = 40
LAYOUT = Layout(
    (TensorSpec("weight", (SIZE,), "float32"),),
    (TensorSpec("norm.running_var", (3,), "float64"), TensorSpec("norm.num_batches_tracked", (), "int64")),
)
NODES = (1, 2, 3)
HOSTILE = 3
ROUNDS = 2
Hostile = Callable[[Message, Message], Message | Exception]
"""Takes an order and the honest reply to it; returns what comes instead, or what pulling it raises."""


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_run_id", 1), ("_node_id", 1), ("_task_id", 0)):
        monkeypatch.setattr(TaskIdentity, name, value)


def initial() -> ArrayRecord:
    return records.from_numpy(
        {
            "weight": np.linspace(-1, 1, SIZE).astype(np.float32),
            "norm.running_var": np.ones(3),
            "norm.num_batches_tracked": np.array(5, np.int64),
        }
    )


def over_the_wire(message: Message) -> Message:
    return serde.message_from_proto(serde.message_to_proto(message))


class Fleet(Grid):
    """Two honest nodes and a hostile one, each in this process."""

    set_run = create_message = run = send_and_receive = None  # type: ignore[assignment]

    def __init__(self, hostile: Hostile) -> None:
        self.hostile = hostile
        made = error_feedback.error_feedback(encoder.sparse(selection.top_k(0.1), values.TERNARY))
        self.client = mod.compress(made, layout=LAYOUT)
        self.contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={}) for node in NODES
        }
        self.trained = {node: np.zeros(SIZE) for node in NODES}
        self.up = dict.fromkeys(NODES, 0)
        self._replies: dict[str, Message | Exception | None] = {}

    def get_node_ids(self) -> list[int]:
        return list(NODES)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids.append(f"message-{len(self._replies)}")
            records.set_id(message, ids[-1])
            order, node = over_the_wire(message), message.metadata.dst_node_id
            reply = over_the_wire(self.client(over_the_wire(message), self.contexts[node], self.application))
            self._replies[ids[-1]] = self.hostile(order, reply) if node == HOSTILE else reply
            self.up[node] += records.serialized_size(reply)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = []
        for name in message_ids:
            reply = self._replies.pop(name, None)
            if isinstance(reply, Exception):
                raise reply
            if reply is not None:
                replies.append(reply)
            self._replies[name] = None  # each is handed out once
        return replies

    def application(self, message: Message, context: Context) -> Message:
        """Train, or evaluate."""
        if message.metadata.message_type == "evaluate":
            metrics = MetricRecord({"num-examples": 3, "accuracy": 0.5})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)
        order, node = orders.read_order(message.content), message.metadata.dst_node_id
        draw = np.random.default_rng([order.round, node])
        update = draw.standard_normal(SIZE).astype(np.float32) * np.float32(0.01)
        if order.mask is not None:
            update *= Mask(SIZE, order.mask).flags
        arrays = records.to_numpy(message.content["arrays"])  # type: ignore[arg-type]
        self.trained[node] += update
        arrays = {**arrays, "weight": arrays["weight"] + update}
        metrics = MetricRecord({"num-examples": 3, "train-loss": 1.0 / order.round})
        content = RecordDict({"arrays": records.from_numpy(arrays), "metrics": metrics})
        if order.mask is not None and order.drop:
            mask = Mask(SIZE, order.mask)
            content[orders.VOTE] = ConfigRecord({"mask": mask.bitmap})
        return Message(content, reply_to=message)

    def residual(self, node: int) -> np.ndarray[Any, Any]:
        stored = stores.open_store(self.contexts[node], "default").load()
        assert stored is not None
        return Memory.of(stored).encoder["residual"]


VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    "whole": dict,
    "deltas": lambda: {"downlink": Downlink(0.2), "optimizer": optimizers.adam()},
    "votes": lambda: {
        "masks": Sparsity(method="feddst", density=0.5).schedule(
            dynamic_sparsity.random_mask(LAYOUT, 0.5, 1, "layer"), ROUNDS
        )
    },
    "buffered": lambda: {"rounds": Rounds(schedule=Buffered(2))},
}


class Played:
    """Rounds with a hostile node, gone on with from their last checkpoint.

    Args:
        hostile: the node's answers.
        variant: name of the strategy's arguments.
    """

    def __init__(self, hostile: Hostile, variant: str = "whole") -> None:
        self.fleet = Fleet(hostile)
        self.accepted: dict[int, list[bytes]] = {node: [] for node in NODES}
        with tempfile.TemporaryDirectory() as folder:
            self.strategy = self._strategy(variant, folder)
            self.result = self.strategy.start(self.fleet, initial(), num_rounds=ROUNDS)
            again = self._strategy(variant, folder)
            resumed = again.start(Fleet(failing), initial(), num_rounds=ROUNDS)
        assert resumed.train_metrics_clientapp == self.result.train_metrics_clientapp
        np.testing.assert_array_equal(again.model.master, self.strategy.model.master)

    def _strategy(self, variant: str, folder: str) -> SparseFed:
        return SparseFed(
            layout=LAYOUT, min_train_nodes=3, min_evaluate_nodes=3, min_available_nodes=3, checkpoints=Path(folder),
            on_accepted=lambda _, node, payload: self.accepted[node].append(payload), **VARIANTS[variant](),
        )  # fmt: skip

    def outcome(self) -> dict[str, Any]:
        """Return what a node that does not count must not change."""
        trained = {
            number: {name: value for name, value in record.items() if "refused" not in name}
            for number, record in self.result.train_metrics_clientapp.items()
        }
        arrays = {**self.strategy.model.buffers, **records.to_numpy(self.result.arrays)}
        return {
            "master": self.strategy.model.master.tolist(),
            "arrays": {name: array.tolist() for name, array in arrays.items()},
            "metrics": trained,
            "residuals": [self.fleet.residual(node).tolist() for node in NODES[:2]],
        }

    def check_refusals(self) -> None:
        for refusal in self.strategy.refusals:
            assert refusal.node == HOSTILE
            assert len(refusal.detail) < 500 and refusal.detail.isprintable()

    def check_nothing_is_lost(self) -> None:
        for node in NODES[:2]:
            sent = [payloads.decode(payload, SideInfo(LAYOUT)).dense() for payload in self.accepted[node]]
            np.testing.assert_allclose(sum(sent) + self.fleet.residual(node), self.fleet.trained[node], atol=1e-6)

    def check_ledger(self) -> None:
        came = dict.fromkeys(NODES, 0)
        for entry in self.strategy.ledger.rows:
            if entry.direction == "up":
                came[entry.node] += entry.bytes
        assert {node: came[node] for node in NODES[:2]} == {node: self.fleet.up[node] for node in NODES[:2]}


def failing(order: Message, reply: Message) -> Message:
    return Message(Error(1, "it failed"), reply_to=order)


@functools.cache
def without(variant: str) -> dict[str, Any]:
    """Return the outcome where the node fails."""
    return Played(failing, variant).outcome()


def check(hostile: Hostile, variant: str = "whole") -> Played:
    """Play the rounds, hold them to the law, and return them."""
    played = Played(hostile, variant)
    played.check_refusals()
    played.check_ledger()
    if variant == "whole":
        played.check_nothing_is_lost()
    if not played.accepted[HOSTILE] and variant != "buffered":  # there another reply may take its place in the buffer
        assert played.outcome() == without(variant)
    return played


def answering(content: RecordDict, **says: Any) -> Hostile:
    """Return a node that sends the same records to every order, with metadata that say what they like."""

    def hostile(order: Message, reply: Message) -> Message:
        answer = Message(content, reply_to=order)
        vars(answer.metadata).update({f"_{name}": value for name, value in says.items()})
        return answer

    return hostile


def changing(**entries: Any) -> Hostile:
    """Return a node that changes entries of its honest answer; None removes one."""

    def hostile(order: Message, reply: Message) -> Message:
        answer = {**reply.content.get(orders.ANSWER, {}), **entries}
        rest = {name: record for name, record in reply.content.items() if name != orders.ANSWER}
        record = ConfigRecord({name: value for name, value in answer.items() if value is not None})
        return Message(RecordDict({orders.ANSWER: record, **rest}), reply_to=order)

    return hostile


@pytest.mark.long
@settings(max_examples=20)
@given(st.sampled_from(list(VARIANTS)), CONTENTS, SAYS)
def test_whatever_a_node_sends_costs_this_node_alone(variant: str, content: RecordDict, says: dict[str, Any]) -> None:
    check(answering(content, **says), variant)


@pytest.mark.long
@settings(max_examples=20)
@given(st.sampled_from(list(VARIANTS)), st.dictionaries(NAMES, st.none() | ENTRIES, min_size=1, max_size=3))
def test_whatever_a_node_changes_in_its_answer_costs_this_node_alone(variant: str, entries: dict[str, Any]) -> None:
    check(changing(**entries), variant)


@settings(max_examples=10)
@given(st.integers(-(2**31), 2**31 - 1), TEXTS, SAYS)
def test_an_error_of_any_code_and_text_costs_the_node_alone(code: int, text: str, says: dict[str, Any]) -> None:
    def hostile(order: Message, reply: Message) -> Message:
        answer = Message(Error(code, text), reply_to=order)
        vars(answer.metadata).update({f"_{name}": value for name, value in says.items()})
        return answer

    check(hostile)


@settings(max_examples=5)
@given(FAILURES)
def test_a_reply_that_cannot_be_pulled_costs_its_node_alone(failure: Exception) -> None:
    played = check(lambda order, reply: failure)
    reasons = [refusal.detail for refusal in played.strategy.refusals]
    assert reasons and all(reason.startswith("the reply cannot be read") for reason in reasons)


def test_an_honest_answer_counts_so_that_these_tests_can_fail() -> None:
    played = check(changing())
    assert len(played.accepted[HOSTILE]) == ROUNDS and not played.strategy.refusals
    assert played.outcome() != without("whole")


def test_a_metric_of_the_servers_own_name_is_refused_and_one_that_sounds_like_it_is_a_metric() -> None:
    played = check(changing(**{"metric.metrics.fedpress.staleness-max": 2.5}), "deltas")
    assert {refusal.reason for refusal in played.strategy.refusals} == {"malformed"}
    played = check(changing(**{"metric.metrics.staleness-max": 2.5, "metric.metrics.replies": 7}))
    assert not played.strategy.refusals
    assert played.result.train_metrics_clientapp[1]["staleness-max"] == 2.5
    assert played.result.train_metrics_clientapp[1]["fedpress.replies"] == 3


def largest(*entries: float) -> bytes:
    positions = np.arange(len(entries))
    update = Sparse(positions, np.array(entries, np.float32), SIZE)
    return payloads.pack(update, LAYOUT, values.FLOAT32).payload


HUGE = {
    "the largest number": {"update": largest(3.4e38)},
    "both signs": {"update": largest(3.4e38, -3.4e38)},
    "a moderate one": {"update": largest(1e16)},
    "with the greatest weight": {"update": largest(1e30), "metric.metrics.num-examples": 1e9},
}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "votes"])
@pytest.mark.parametrize("name", HUGE)
def test_an_update_that_would_overflow_is_refused_by_name(name: str, variant: str) -> None:
    played = check(changing(**HUGE[name]), variant)
    assert {(refusal.node, refusal.reason) for refusal in played.strategy.refusals} == {(HOSTILE, "too large")}
    assert "e+" in played.strategy.refusals[0].detail and not played.accepted[HOSTILE]


@pytest.mark.parametrize(
    "optimizer", [optimizers.sgd(1.0, 0.9), optimizers.adam(), optimizers.yogi(), optimizers.adagrad()]
)
def test_the_largest_update_that_counts_overflows_no_optimizer(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "tried", lambda: {"optimizer": optimizer})
    payload = largest(LARGEST, -LARGEST)
    played = Played(changing(**{"update": payload, "metric.metrics.num-examples": 1e9}), "tried")
    assert len(played.accepted[HOSTILE]) == ROUNDS and np.isfinite(played.strategy.model.master).all()
    assert all(torch.isfinite(state).all() for state in played.strategy.model.optimizer.state.values())


@pytest.mark.parametrize("value", [np.finfo(np.float64).max, -np.finfo(np.float64).max])
def test_the_largest_buffers_keep_the_mean_finite(value: float) -> None:
    """As they may be meant: masks of attention hold the smallest number there is."""
    buffers = np.array([1, value if value > 0 else 1, 1]).tobytes() + np.array(2**63 - 1, "<i8").tobytes()
    buffers = b"\3" + struct.pack("<I", zlib.crc32(buffers)) + buffers
    played = check(changing(buffers=buffers, **{"metric.metrics.num-examples": 1e9}))
    assert played.accepted[HOSTILE] and all(
        np.isfinite(array).all() for array in played.strategy.model.buffers.values()
    )


@pytest.mark.parametrize("sender", [1, 0, 2**64 - 1])
def test_a_reply_in_another_nodes_name_is_refused_and_that_node_counts(sender: int) -> None:
    """It names the other node and, where it can guess it, the order to that node."""
    for says in ({"src_node_id": sender}, {"src_node_id": sender, "reply_to_message_id": "message-0"}):

        def hostile(order: Message, reply: Message, says: dict[str, Any] = says) -> Message:
            vars(reply.metadata).update({f"_{name}": value for name, value in says.items()})
            return reply

        played = check(hostile)
        assert not played.accepted[HOSTILE]
        assert all(len(played.accepted[node]) == ROUNDS for node in NODES[:2])


def test_what_a_client_writes_is_kept_short_and_in_one_line() -> None:
    for hostile in (
        changing(error="no space\n\x1b[2Jleft " * 1_000_000),
        lambda order, reply: Message(Error(1, "\x1b]0;title\x07\n" * 1_000_000), reply_to=order),
    ):
        played = check(hostile)
        assert played.strategy.refusals[0].detail.endswith("characters)")


def test_metrics_that_the_application_cannot_average_are_left_out_and_the_round_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def picky(contents: list[RecordDict], key: str) -> MetricRecord:
        return MetricRecord({"loss": sum(float(content["metrics"]["train-loss"]) for content in contents)})  # type: ignore

    monkeypatch.setitem(VARIANTS, "picky", lambda: {"train_metrics_aggr_fn": picky})
    played = Played(changing(**{"metric.metrics.train-loss": None}), "picky")
    assert len(played.accepted[HOSTILE]) == ROUNDS
    assert set(played.result.train_metrics_clientapp[1]) == {"fedpress.replies", "fedpress.refused"}
