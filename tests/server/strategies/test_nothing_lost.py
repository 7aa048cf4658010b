"""The law over thousands of orders: what the server took in + what the clients keep back == what was trained.

The real strategy, the real mod and the real files, with a link between them that loses, doubles, delays and reorders
messages, and a server that is killed now and then; in the last test, clients that lose their state besides.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common import serde
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedpress.client import mod
from fedpress.client.state import stores
from fedpress.client.state.memory import Memory
from fedpress.compression.encoders import encoder, error_feedback, selection
from fedpress.compression.encoders.encoder import Encoder, SideInfo
from fedpress.compression.messages import orders, records
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.mask import Mask, MaskChange
from fedpress.compression.wire import payloads, values
from fedpress.server.checkpoint import state
from fedpress.server.checkpoint.checkpoint_folder import CheckpointFolder
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.aggregate import ReplyMean
from fedpress.server.rounds.buffered import Buffered
from fedpress.server.rounds.settings import Rounds, Sampling
from fedpress.server.rounds.stepper import Stepper
from fedpress.server.strategies.sparse_fed import SparseFed

SIZE = 40
LAYOUT = Layout((TensorSpec("weight", (SIZE,), "float32"),))
NODES = 5
ROUNDS = 200
BUFFERED_ROUNDS = 100
MASKED_ROUNDS = 100


def initial(size: int = SIZE) -> ArrayRecord:
    return records.from_numpy({"weight": np.linspace(-1, 1, size).astype(np.float32)})


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
    yield


def restore(strategy: SparseFed, saved: bytes) -> None:
    """Let a fresh strategy go on from what was packed."""
    strategy.federation.adopt(initial())
    state.restore(strategy.federation, state.unpack(saved), "federation")


class Link(Grid):
    """Between the server and the clients: what is sent, either way, may come never, twice, or rounds later.

    So an order may come after newer ones, with a verdict that is as old as it is.
    """

    def __init__(self, folder: Path, made: Encoder[Any], draw: np.random.Generator, layout: Layout = LAYOUT) -> None:
        self.folder, self.draw, self.layout = folder, draw, layout
        self.asked = np.zeros(layout.size)
        self.trained = 0
        self.seen: dict[str, int] = {"lost": 0, "doubled": 0, "late": 0, "too old": 0}
        self._applied = mod.compress(made, layout=layout)
        # Round from which on it may come, message.
        self._orders: list[tuple[int, Message]] = []
        self._replies: list[tuple[int, Message]] = []

    def get_node_ids(self) -> list[int]:
        return list(range(1, NODES + 1))

    def context(self, node: int) -> Context:
        config: Any = {"state-folder": str(self.folder), "partition-id": node}
        return Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})

    def exchange(self, server_round: int, messages: list[Message], perfect: bool = False) -> list[Message]:
        """Return the replies that come in this round: of this one, and of earlier ones."""
        for message in messages:
            self._send(self._orders, server_round, message, 1 if perfect else 0.8)
        for message in self._arrived(self._orders, server_round):
            self._send(self._replies, server_round, self._answer(message), 1 if perfect else 0.7)
        return self._arrived(self._replies, server_round)

    def _send(self, way: list[tuple[int, Message]], now: int, message: Message, well: float) -> None:
        times = 1 if self.draw.random() < well else int(self.draw.choice([0, 2]))
        self._count(times)
        for _ in range(times):
            late = 0 if self.draw.random() < well else int(self.draw.choice([1, 2, 7]))
            self.seen["late"] += late > 0
            way.append((now + late, message))

    def _count(self, times: int) -> None:
        self.seen["lost"] += times == 0
        self.seen["doubled"] += times == 2

    def _arrived(self, way: list[tuple[int, Message]], now: int) -> list[Message]:
        come = [message for due, message in way if due <= now]
        way[:] = [(due, message) for due, message in way if due > now]
        return [come[index] for index in self.draw.permutation(len(come))]

    def update(self, node: int) -> Vector:
        """What a client's training makes."""
        return self.draw.standard_normal(self.layout.size).astype(np.float32) * np.float32(0.01)

    def _answer(self, message: Message) -> Message:
        def application(message: Message, _: Context) -> Message:
            update = self.update(message.metadata.dst_node_id)
            self.asked += update
            self.trained += 1
            arrays = records.to_numpy(message.content["arrays"])
            trained = records.from_numpy({"weight": arrays["weight"] + update})
            content = RecordDict({"arrays": trained, "metrics": MetricRecord({"num-examples": 3})})
            return Message(content, reply_to=message)

        own = serde.message_from_proto(serde.message_to_proto(message))  # as it comes over the wire
        reply = self._applied(own, self.context(message.metadata.dst_node_id), application)
        self.seen["too old"] += not reply.has_error() and "is older than" in orders.read_answer(reply.content).error
        return reply

    def residuals(self) -> np.ndarray[Any, Any]:
        """What all clients keep back."""
        total = np.zeros(self.layout.size)
        for node in self.get_node_ids():
            stored = stores.open_store(self.context(node), "default").load()
            if stored is not None:
                total += Memory.of(stored).encoder["residual"]
        return total

    # Not used here: the hooks of the strategy are called by the test.
    set_run = create_message = push_messages = pull_messages = send_and_receive = run = None  # type: ignore[assignment]


ENCODERS = {
    "residual": lambda: error_feedback.error_feedback(encoder.sparse(selection.top_k(0.1), values.TERNARY)),
    "step ahead": lambda: error_feedback.step_ahead(
        error_feedback.error_feedback(encoder.sparse(selection.top_k(0.1), values.INT8))
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("downlink", [None, Downlink(0.2)], ids=["whole", "deltas"])
@pytest.mark.parametrize("name", ENCODERS)
def test_nothing_is_lost_over_a_thousand_orders(tmp_path: Path, name: str, downlink: Downlink | None) -> None:
    draw = np.random.default_rng(4)
    link = Link(tmp_path, ENCODERS[name](), draw)

    def fresh() -> SparseFed:
        return SparseFed(fraction_train=0.8, rounds=Rounds(min_replies=2), layout=LAYOUT, downlink=downlink)

    strategy, arrays = fresh(), initial()
    taken, kills = np.zeros(SIZE), 0
    saved = b""
    for number in range(1, ROUNDS + 1):
        if number > 1 and draw.random() < 0.1:
            # Killed in the last round after its orders had left, or before: the same tickets are issued again.
            if draw.random() < 0.5:
                link.exchange(number, strategy.configure_train(number, arrays, ConfigRecord(), link))
            strategy, kills = fresh(), kills + 1
            restore(strategy, saved)
            arrays = strategy.model.arrays
        last = number == ROUNDS
        if last:
            strategy.federation.sampling, strategy.federation.rounds = Sampling(1.0), Rounds()
        orders = strategy.configure_train(number, arrays, ConfigRecord(), link)
        before = strategy.model.master.astype(np.float64)
        stepped, metrics = strategy.aggregate_train(number, link.exchange(number, orders, perfect=last))
        assert metrics is not None
        taken += metrics["fedpress.replies"] * (strategy.model.master - before)  # type: ignore[operator]
        arrays = stepped if stepped is not None else arrays
        saved = state.pack({"federation": strategy.federation.state()})
    assert metrics["fedpress.replies"] == NODES  # nothing is under way any more
    assert link.trained > 600 and kills > 10 and min(link.seen.values()) > 100
    assert strategy.federation.accounting.lost_states == 0
    np.testing.assert_allclose(taken + link.residuals(), link.asked, atol=2e-4)


class Wandering:
    """Another mask every few rounds, drawn by the round; the first one is there from the start, or all entries are."""

    def __init__(self, first: bool) -> None:
        self.first = self._drawn(0) if first else None

    def _drawn(self, number: int) -> Mask:
        return Mask.of(np.random.default_rng(number).random(SIZE) < 0.6)

    def vote_request(self, server_round: int) -> None:
        return None

    def after(self, server_round: int, master: Vector, layout: Layout, ballot: Any) -> Mask | None:
        return self._drawn(server_round) if server_round % 7 == 0 and server_round < MASKED_ROUNDS else None


class MaskedLink(Link):
    """Counts by place in the vector without a mask, and what falls away with a mask."""

    def __init__(self, folder: Path, made: Encoder[Any], draw: np.random.Generator) -> None:
        self.discarded = np.zeros(SIZE)
        self.before = LAYOUT  # of the state of the client that is answering

        def remap(state: Any, change: MaskChange) -> Any:
            state, dropped = made.remap(state, change)
            self.discarded[self.before.whole(change.removed)] += dropped
            return state, dropped

        super().__init__(folder, made._replace(remap=remap), draw)

    def _answer(self, message: Message) -> Message:
        memory = self.memory(message.metadata.dst_node_id)
        if memory is not None and memory.layout is not None:
            self.before = memory.layout

        def application(message: Message, _: Context) -> Message:
            update = self.update(message.metadata.dst_node_id)
            order = orders.read_order(message.content)
            flags = np.ones(SIZE, np.bool_) if order.mask is None else Mask(SIZE, order.mask).flags
            self.asked += np.where(flags, update, 0)
            self.trained += 1
            arrays = records.to_numpy(message.content["arrays"])
            assert not arrays["weight"][~flags].any()
            trained = records.from_numpy({"weight": arrays["weight"] + update})  # outside the mask, too
            content = RecordDict({"arrays": trained, "metrics": MetricRecord({"num-examples": 3})})
            return Message(content, reply_to=message)

        own = serde.message_from_proto(serde.message_to_proto(message))
        reply = self._applied(own, self.context(message.metadata.dst_node_id), application)
        answer = orders.read_answer(reply.content)
        self.seen["too old"] += "is older than" in answer.error
        assert not answer.needs_model  # a lost reply costs no whole mask, nor a whole model
        return reply

    def memory(self, node: int) -> Memory | None:
        stored = stores.open_store(self.context(node), "default").load()
        return None if stored is None else Memory.of(stored)

    def residuals(self) -> np.ndarray[Any, Any]:
        total = np.zeros(SIZE)
        for node in self.get_node_ids():
            memory = self.memory(node)
            if memory is not None and memory.layout is not None:
                total[memory.layout.whole(np.arange(memory.layout.size))] += memory.encoder["residual"]
        return total


@pytest.mark.slow
@pytest.mark.parametrize(
    "downlink", [pytest.param(None, marks=pytest.mark.long, id="whole"), pytest.param(Downlink(0.2), id="deltas")]
)
@pytest.mark.parametrize("name", ENCODERS)
def test_nothing_is_lost_but_what_is_counted_while_the_mask_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, downlink: Downlink | None
) -> None:
    """accepted + residuals + discarded == trained, entry by entry of the vector without a mask."""
    draw = np.random.default_rng(4)
    link = MaskedLink(tmp_path, ENCODERS[name](), draw)
    taken, added = np.zeros(SIZE), np.zeros(SIZE)
    add = ReplyMean.add

    def counted(self: ReplyMean, *reply: Any) -> Any:
        update = add(self, *reply)
        added[self._layout.whole(np.arange(self._layout.size))] += update.dense()
        return update

    monkeypatch.setattr(ReplyMean, "add", counted)

    def fresh() -> SparseFed:
        masks = Wandering(first=name == "residual")
        return SparseFed(
            fraction_train=0.8, rounds=Rounds(min_replies=2), layout=LAYOUT, downlink=downlink, masks=masks
        )

    strategy, arrays, kills, saved = fresh(), initial(), 0, b""
    for number in range(1, MASKED_ROUNDS + 1):
        if number > 1 and draw.random() < 0.1:
            if draw.random() < 0.5:
                link.exchange(number, strategy.configure_train(number, arrays, ConfigRecord(), link))
            strategy, kills = fresh(), kills + 1
            restore(strategy, saved)
            arrays = strategy.model.arrays
        last = number == MASKED_ROUNDS
        if last:
            strategy.federation.sampling, strategy.federation.rounds = Sampling(1.0), Rounds()
        orders = strategy.configure_train(number, arrays, ConfigRecord(), link)
        added[:] = 0
        stepped, metrics = strategy.aggregate_train(number, link.exchange(number, orders, perfect=last))
        assert metrics is not None
        taken += added if metrics["fedpress.replies"] else 0
        arrays = stepped if stepped is not None else arrays
        saved = state.pack({"federation": strategy.federation.state()})
    assert metrics["fedpress.replies"] == NODES
    assert link.trained > 250 and kills > 5 and strategy.model.masks.version > 8
    assert min(link.seen.values()) > 50 and strategy.federation.accounting.lost_states == 0
    assert np.abs(link.discarded).sum() > 0.1
    np.testing.assert_allclose(taken + link.residuals() + link.discarded, link.asked, atol=2e-4)
    remembered = sum(memory.discarded for node in link.get_node_ids() if (memory := link.memory(node)))
    assert remembered == pytest.approx(link.discarded.sum(), abs=1e-5)
    mask = strategy.model.masks.mask
    assert mask is not None and not records.to_numpy(arrays)["weight"][~mask.flags].any()


def test_an_order_that_comes_after_a_newer_one_changes_nothing(tmp_path: Path) -> None:
    link = Link(tmp_path, ENCODERS["residual"](), np.random.default_rng(1))
    strategy = SparseFed(layout=LAYOUT, min_train_nodes=NODES)
    old = strategy.configure_train(1, initial(), ConfigRecord(), link)
    strategy.aggregate_train(1, [])
    new = strategy.configure_train(2, strategy.model.arrays, ConfigRecord(), link)
    _, metrics = strategy.aggregate_train(2, link.exchange(2, new, perfect=True))
    assert metrics is not None and metrics["fedpress.replies"] == NODES
    before = link.residuals()
    replies = link.exchange(2, old, perfect=True)  # too late for everybody
    tickets = [{orders.read_order(message.content).ticket for message in messages} for messages in (old, new)]
    assert max(tickets[0]) < min(tickets[1])
    assert {orders.read_answer(reply.content).error for reply in replies} == {
        f"ticket {before} is older than {after}, the last one answered here"
        for before, after in zip(*map(sorted, tickets), strict=True)
    }
    np.testing.assert_array_equal(link.residuals(), before)
    third = strategy.configure_train(3, strategy.model.arrays, ConfigRecord(), link)
    _, metrics = strategy.aggregate_train(3, link.exchange(3, third, perfect=True))
    assert (
        metrics is not None and metrics["fedpress.replies"] == NODES and strategy.federation.accounting.lost_states == 0
    )


def test_a_server_that_begins_anew_passes_the_tickets_that_clients_have_answered(tmp_path: Path) -> None:
    """The same federation, without a checkpoint: one round is lost, and nothing that clients keep back."""
    link = Link(tmp_path, ENCODERS["residual"](), np.random.default_rng(1))
    counts = []
    for _ in range(2):
        strategy, arrays = SparseFed(layout=LAYOUT, min_train_nodes=NODES), initial()
        for number in range(1, 4):
            orders = strategy.configure_train(number, arrays, ConfigRecord(), link)
            stepped, metrics = strategy.aggregate_train(number, link.exchange(number, orders, perfect=True))
            assert metrics is not None
            counts.append(metrics["fedpress.replies"])
            arrays = stepped if stepped is not None else arrays
    assert counts == [NODES, NODES, NODES, 0, NODES, NODES]
    assert strategy.federation.accounting.lost_states == 0


class Marked(Link):
    """Every training puts 1 into two entries that no other one touches, so that what counted can be counted.

    Clients lose their state or get it back from a backup. The way there doubles no order (see the test).
    """

    TOUCHED = 2

    def __init__(self, folder: Path, made: Encoder[Any], draw: np.random.Generator, size: int) -> None:
        super().__init__(folder, made, draw, Layout((TensorSpec("weight", (size,), "float32"),)))
        self.accidents = {"gone": 0, "backup": 0}
        self.owner = np.zeros(size, int)  # of each entry
        self.since = dict.fromkeys(self.get_node_ids(), 0)  # first entry trained since state was last in danger
        self.in_danger: set[int] = set()

    def update(self, node: int) -> Vector:
        update = np.zeros(self.layout.size, np.float32)
        touched = slice(self.TOUCHED * self.trained, self.TOUCHED * (self.trained + 1))
        update[touched], self.owner[touched] = 1, node
        return update

    def _send(self, way: list[tuple[int, Message]], now: int, message: Message, well: float) -> None:
        if way is not self._orders:
            super()._send(way, now, message, well)
        elif self.draw.random() < (1 + well) / 2:
            self._orders.append((now if self.draw.random() < well else now + int(self.draw.integers(1, 9)), message))

    def accident(self, node: int) -> None:
        """Bring the client's state to nothing, or to what the backup has."""
        store = stores.open_store(self.context(node), "default")
        assert isinstance(store, stores.FolderStore)
        backup = store.path.with_suffix(".backup")
        if store.path.exists() and self.draw.random() < 0.15:
            shutil.copy(store.path, backup)
        if store.path.exists() and self.draw.random() < 0.05:
            kind = "backup" if backup.exists() and self.draw.random() < 0.6 else "gone"
            if kind == "backup":
                shutil.copy(backup, store.path)
            else:
                store.path.unlink()
            self.accidents[kind] += 1
            self.in_danger.add(node)

    def accepted(self, node: int) -> None:
        """From here on the client's state is in step with the server's verdicts again, if it was not."""
        if node in self.in_danger:
            self.in_danger.remove(node)
            self.since[node] = self.TOUCHED * self.trained


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_clients_that_lose_their_state_count_nothing_twice_and_lose_nothing_else(tmp_path: Path, seed: int) -> None:
    """Each training counts once; only what was trained before a loss was noticed may count never.

    One case is left out: an order that comes twice, to a client that got back an old state in between.
    """
    rounds, draw = 250, np.random.default_rng(seed)
    top = error_feedback.error_feedback(encoder.sparse(selection.top_k(k=3), values.FLOAT32))
    link = Marked(tmp_path, top, draw, Marked.TOUCHED * NODES * rounds)
    shared, counted = SideInfo(link.layout), np.zeros(link.layout.size)

    def accepted(round: int, node: int, payload: bytes) -> None:
        payloads.decode(payload, shared).add_to(counted)
        link.accepted(node)

    strategy = SparseFed(fraction_train=0.8, rounds=Rounds(min_replies=2), layout=link.layout, on_accepted=accepted)
    arrays = initial(link.layout.size)
    for number in range(1, rounds + 1):
        for node in link.get_node_ids():
            link.accident(node)
        last = number == rounds
        if last:
            strategy.federation.sampling, strategy.federation.rounds = Sampling(1.0), Rounds()
        orders = strategy.configure_train(number, arrays, ConfigRecord(), link)
        stepped, metrics = strategy.aggregate_train(number, link.exchange(number, orders, perfect=last))
        arrays = stepped if stepped is not None else arrays
    assert metrics is not None and metrics["fedpress.replies"] == NODES
    assert link.trained > 500 and min(link.accidents.values()) > 10 and min(link.seen.values()) > 50
    assert 0 < strategy.federation.accounting.lost_states <= sum(link.accidents.values())
    total = (counted + link.residuals()).round(4)  # trained - start is not exactly 1
    assert set(total) <= {0, 1}
    for node, first in link.since.items():
        own = np.flatnonzero(link.owner == node)
        assert np.all(total[own[own >= first]] == 1)


class Killed(BaseException):
    """In place of SIGKILL: nobody catches it."""


class TimedLink(Link):
    """Pushes and pulls on a virtual clock: a reply comes after some seconds, never, twice or damaged.

    It is a deployment's grid in one respect: nobody saves what is under way when the server is killed.
    """

    def __init__(self, folder: Path, made: Encoder[Any], draw: np.random.Generator) -> None:
        super().__init__(folder, made, draw)
        self.time, self.pushed, self.kills = 0.0, 0, 0.0  # `kills`: chance of one at each pull
        self.ready: list[tuple[float, str, Message]] = []

    @property
    def clock(self) -> "TimedLink":
        return self

    def now(self) -> float:
        return self.time

    def wait(self, until: float) -> None:
        self.time = min([until, *(arrival for arrival, _, _ in self.ready if arrival > self.time)])

    def push_messages(self, messages: Any) -> list[str]:
        ids = []
        for message in messages:
            self.pushed += 1
            ids.append(f"message-{self.pushed}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            times = int(self.draw.choice([0, 1, 2], p=[0.05, 0.9, 0.05]))
            self._count(times)
            for _ in range(times):
                reply = self._answer(message)
                if self.draw.random() < 0.05:
                    answer = reply.content.config_records[orders.ANSWER]
                    if "update" in answer:
                        update = bytes(answer["update"])  # type: ignore[arg-type]
                        answer["update"] = update[:-1] + bytes([update[-1] ^ 1])
                copies = int(self.draw.choice([0, 1, 2], p=[0.1, 0.8, 0.1]))
                self._count(copies)
                seconds = float(self.draw.exponential(1.0))
                self.seen["late"] += seconds > 3
                self.ready += [(self.time + seconds, ids[-1], reply)] * copies
        return ids

    def pull_messages(self, message_ids: Any) -> list[Message]:
        if self.draw.random() < self.kills:
            raise Killed
        wanted = set(message_ids)
        come = sorted((one for one in self.ready if one[0] <= self.time and one[1] in wanted), key=lambda one: one[:2])
        self.ready = [one for one in self.ready if one not in come]
        return [reply for _, _, reply in come]


@pytest.mark.slow
@pytest.mark.parametrize(
    "downlink", [pytest.param(None, marks=pytest.mark.long, id="whole"), pytest.param(Downlink(0.2), id="deltas")]
)
@pytest.mark.parametrize("name", ENCODERS)
def test_nothing_is_lost_with_a_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, downlink: Downlink | None
) -> None:
    link = TimedLink(tmp_path / "states", ENCODERS[name](), np.random.default_rng(5))
    link.kills = 0.01
    taken, weights, again = np.zeros(SIZE), set[float](), [False]
    add, redo = ReplyMean.add, Stepper.redo

    def counted(self: ReplyMean, payload: bytes, buffers: bytes, weight: float, *known: Any) -> Any:
        update = add(self, payload, buffers, weight, *known)
        if not again[0]:
            taken[:] += update.dense()  # between here and the checkpoint, nothing can be killed
        weights.add(weight)
        return update

    def counted_before(self: Stepper, *given: Any, **more: Any) -> None:
        again[0] = True
        redo(self, *given, **more)
        again[0] = False

    monkeypatch.setattr(ReplyMean, "add", counted)
    monkeypatch.setattr(Stepper, "redo", counted_before)

    def fresh() -> SparseFed:
        return SparseFed(
            fraction_train=0.8, fraction_evaluate=0.0, layout=LAYOUT, downlink=downlink,
            rounds=Rounds(deadline=3.0, schedule=Buffered(2, max_staleness=2)),
            checkpoints=CheckpointFolder(tmp_path / "checkpoints", budget=0.0 if downlink else 1.0),
        )  # fmt: skip

    kills = 0
    while True:
        strategy = fresh()
        try:
            strategy.start(link, initial(), num_rounds=BUFFERED_ROUNDS)
            break
        except Killed:
            kills += 1
    # Everybody settles what is open: one round in which nothing goes wrong.
    strategy.federation.sampling, strategy.federation.rounds, link.kills = Sampling(1.0), Rounds(), 0.0
    orders = strategy.configure_train(BUFFERED_ROUNDS + 1, strategy.model.arrays, ConfigRecord(), link)
    _, metrics = strategy.aggregate_train(BUFFERED_ROUNDS + 1, link.exchange(BUFFERED_ROUNDS + 1, orders, perfect=True))
    assert metrics is not None and metrics["fedpress.replies"] == NODES
    reasons = {refusal.reason for refusal in strategy.refusals}
    assert {"late", "stale", "undecodable", "restart"} <= reasons
    del link.seen["too old"]  # every order came at once
    assert link.trained > 250 and kills > 2 and min(link.seen.values()) > 8
    assert strategy.federation.accounting.lost_states == 0
    np.testing.assert_allclose(sorted(weights), [3 / np.sqrt(3), 3 / np.sqrt(2), 3])
    np.testing.assert_allclose(taken + link.residuals(), link.asked, atol=2e-4)
