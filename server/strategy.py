"""`SparseFed`: a Flower strategy that adds up encoded updates, in place of `FedAvg`.

Unlike Flower's own, one odd reply costs that client this round and nobody else, no dense vector is made for a
client, and `start` pushes and pulls, so that a round can end at a deadline or once enough replies are in.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from logging import INFO, WARNING
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log
from numpy.typing import NDArray

from fedpress.compression import records, seeds, vector, wire
from fedpress.compression.encoder import Shared
from fedpress.compression.errors import PayloadError
from fedpress.compression.ledger import Direction, Ledger
from fedpress.compression.records import Download
from fedpress.compression.update import Sparse, Update
from fedpress.compression.vector import Layout
from fedpress.server import exchange, optimize, resume
from fedpress.server.accumulate import Accumulator, BufferMean
from fedpress.server.checkpoint import CheckpointError, CheckpointFolder, Resumable, State, pairs
from fedpress.server.exchange import Clock, WallClock
from fedpress.server.global_model import GlobalModel
from fedpress.server.optimize import ServerOptimizer
from fedpress.server.versions import Downlink

MAX_EXAMPLES = 1e9
"""Default cap on the number of examples that a reply may claim: its weight in the mean."""


class Refusal(NamedTuple):
    """A reply that did not count."""

    round: int
    node: int
    reason: str  # one of a few words, for counting
    detail: str


@dataclass
class RoundSummary:
    """What one round did."""

    round: int
    arrays: ArrayRecord  # the model after the round: held, or the mean of held models with `averaging`
    replies: int = 0  # that counted
    refusals: list[Refusal] = field(default_factory=list)
    up_bytes: int = 0
    down_bytes: int = 0
    seconds: float = 0.0  # by the grid's clock, virtual in simulations
    train: MetricRecord | None = None
    evaluation: MetricRecord | None = None  # from `evaluate_fn`

    @property
    def reasons(self) -> dict[str, int]:
        """Return the number of refusals by reason."""
        return dict(Counter(refusal.reason for refusal in self.refusals))


class SparseFed(Strategy):
    """Federated averaging of encoded updates: a drop-in for `FedAvg` where clients use `compress(...)`.

    The first block of arguments is FedAvg's, with the same meaning and defaults.

    Args:
        optimizer: the server's rule on the mean update; `optimize.sgd(1.0)` is FedAvg.
        downlink: how the model goes down: deltas of a held model that clients keep (`versions.Downlink`); None: whole.
        averaging: decay of the mean over the rounds that is evaluated and returned (`average.Average`), in [0, 1);
            0: the newest model is.
        prediction: factor of what the download predicts of an update; 0: nothing. Other than 0 exactly where clients
            use `cafe.aggregate_feedback`, and then the same as there. Needs a downlink.
        layout: which arrays are parameters and which buffers; by default guessed by the usual names. Clients must
            use the same.
        over_selection: nodes sampled beyond the wanted number; the round ends once the wanted number has answered, and
            later replies are refused (their mass stays with the client).
        min_replies: with fewer replies that count, the round makes no step and refuses them all.
        deadline: seconds after which a round's open replies are refused; None waits for `start`'s timeout.
        max_examples: replies that claim more examples are refused.
        federation: names the federation; clients keep their state under it.
        seed: for sampling nodes.
        ledger: counts every message's serialised content; by default a fresh one, in `self.ledger`.
        on_round: called with each round's summary.
        on_accepted: called with round, node and payload of each reply that counted, in the order of the nodes.
        clock: what deadlines follow; by default the grid's own `clock` if it has one, else real time.
        checkpoints: folder for a checkpoint of every round, from which `start` goes on by itself after a kill; None:
            there are none. One federation to a folder.

    Attributes:
        companions: other parts of the run that go into its checkpoints, by name. The grid does by itself, if it can.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: Callable[[list[RecordDict], str], MetricRecord] | None = None,
        evaluate_metrics_aggr_fn: Callable[[list[RecordDict], str], MetricRecord] | None = None,
        *,
        optimizer: ServerOptimizer | None = None,
        downlink: Downlink | None = None,
        averaging: float = 0.0,
        prediction: float = 0.0,
        layout: Layout | None = None,
        over_selection: int = 0,
        min_replies: int = 1,
        deadline: float | None = None,
        max_examples: float = MAX_EXAMPLES,
        federation: str = "default",
        seed: int = 0,
        ledger: Ledger | None = None,
        on_round: Callable[[RoundSummary], None] | None = None,
        on_accepted: Callable[[int, int, bytes], None] | None = None,
        clock: Clock | None = None,
        checkpoints: CheckpointFolder | Path | str | None = None,
    ) -> None:
        for name, value in (("fraction_train", fraction_train), ("fraction_evaluate", fraction_evaluate)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, and is {value}")
        if not 0 <= averaging < 1:
            raise ValueError(f"averaging must be in [0, 1), and is {averaging}")
        if over_selection < 0 or min_replies < 1:
            raise ValueError(
                f"over_selection must be at least 0 and min_replies at least 1; got {over_selection} and {min_replies}"
            )
        if deadline is not None and not deadline > 0:
            raise ValueError(f"deadline must be a positive number of seconds or None, and is {deadline}")
        if prediction and downlink is None:
            raise ValueError(
                f"prediction is {prediction:g} without a downlink, but what is predicted is its last delta"
            )
        self.fraction_train = fraction_train
        self.fraction_evaluate = fraction_evaluate
        self.min_train_nodes = min_train_nodes
        self.min_evaluate_nodes = min_evaluate_nodes if fraction_evaluate else 0
        self.min_available_nodes = min_available_nodes
        self.weighted_by_key = weighted_by_key
        self.arrayrecord_key = arrayrecord_key
        self.configrecord_key = configrecord_key
        self.train_metrics_aggr_fn = train_metrics_aggr_fn or weighted_metrics
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn or weighted_metrics
        self.over_selection = over_selection
        self.min_replies = min_replies
        self.prediction = prediction
        self.deadline = deadline
        self.max_examples = max_examples
        self.federation = federation
        self.seed = seed
        self.ledger = ledger if ledger is not None else Ledger()
        self.on_round = on_round
        self.on_accepted = on_accepted
        self.refusals: list[Refusal] = []
        self.lost_states = 0  # answers of clients that had lost their state
        self.messages = {"up": 0, "down": 0}  # billed, for training
        self.companions: dict[str, Resumable] = {}
        self.checkpoints = CheckpointFolder(checkpoints) if isinstance(checkpoints, Path | str) else checkpoints
        self._make_optimizer = optimizer or optimize.sgd()
        self._downlink = downlink
        self._averaging = averaging
        self._layout = layout
        self._clock = clock
        self._tickets = 0
        self._accepted: dict[int, int] = {}  # node -> ticket of its last accepted upload
        self._confirmed: dict[int, int] = {}  # node -> version that it has shown to hold
        self._orders: dict[int, records.Order] = {}  # node -> its open order of this round
        self._late: dict[str, exchange.Open] = {}  # message id -> order that was closed without a reply
        self._wanted = 0
        self._model: GlobalModel | None = None
        self._total = Accumulator(0)
        self._sent_by_layer: NDArray[np.int64] = np.zeros(0, np.int64)
        self._updates_seen = 0

    # ---- Flower's hooks --------------------------------------------------------------------------------------------

    def summary(self) -> None:
        """Log what this strategy will do."""
        log(INFO, "\t├──> Sampling: fraction %.2f, over-selection %d", self.fraction_train, self.over_selection)
        log(INFO, "\t├──> A round needs %d replies, deadline %s", self.min_replies, self.deadline or "none")
        log(INFO, "\t└──> Federation: %r", self.federation)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample nodes and open a ticket for each."""
        if self.fraction_train == 0.0:
            return []
        self._adopt(arrays)
        self._orders = {}
        messages = []
        for node in self._sample(
            grid, self.fraction_train, self.min_train_nodes, self.over_selection, server_round, "train"
        ):
            self._tickets += 1
            message = self._message(node, server_round, self._tickets, MessageType.TRAIN, config)
            self._orders[node] = records.read_order(message.content)
            messages.append(message)
        self._wanted = max(1, len(messages) - self.over_selection)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add up the updates of this round's good replies and step the model; refuse the others, each for itself."""
        layout = self.model.layout
        first_refusal = len(self.refusals)
        answers = sorted(self._answers(server_round, replies), key=lambda answer: answer.node)  # the sum's fixed order
        versions = self.model.versions
        total, buffers = self._total, BufferMean(layout)
        total.reset()
        counted: list[_Checked] = []
        for answer in answers:
            try:
                reference = versions.support(answer.download) if versions else None
                update = wire.decode(answer.payload, Shared(layout, server_round, reference=reference))
                own = vector.unpack_buffers(answer.buffers, layout) if layout.buffers else {}
            except PayloadError as error:
                self._refuse(server_round, answer.node, "undecodable", f"{type(error).__name__}: {error}")
                continue
            predictor = None
            if versions and self.prediction:
                predictor = versions.predictor(answer.download, answer.version)
            total.add(update, answer.weight, predictor, self.prediction)
            buffers.add(own, answer.weight)
            self._count_by_layer(update)
            counted.append(answer)
        heard = {answer.node for answer in answers} | {refusal.node for refusal in self.refusals[first_refusal:]}
        for node in self._orders:
            if node not in heard:
                self._refuse(server_round, node, "late", "no reply before the round was closed")
        self._orders = {}
        if len(counted) < self.min_replies:
            for answer in counted:
                self._refuse(
                    server_round,
                    answer.node,
                    "too few",
                    f"{len(counted)} replies, {self.min_replies} are needed for a step",
                )
            counted = []
        metrics = MetricRecord()
        if counted:
            self.model.step(total.mean(), buffers.result(self.model.buffers))
            for answer in counted:
                self._accepted[answer.node] = answer.ticket
                self.lost_states += answer.lost_state
                if self.on_accepted:
                    self.on_accepted(server_round, answer.node, answer.payload)
            metrics = self.train_metrics_aggr_fn([answer.content for answer in counted], self.weighted_by_key)
        refused = self.refusals[first_refusal:]
        metrics["replies"] = len(counted)
        metrics["refused"] = len(refused)
        for reason, count in Counter(refusal.reason for refusal in refused).items():
            metrics[f"refused-{reason.replace(' ', '-')}"] = count
        return (self.model.arrays if counted else None), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample nodes that evaluate the model on their own data."""
        if self.fraction_evaluate == 0.0:
            return []
        self._adopt(arrays)
        nodes = self._sample(grid, self.fraction_evaluate, self.min_evaluate_nodes, 0, server_round, "evaluate")
        return [self._message(node, server_round, 0, MessageType.EVALUATE, config) for node in nodes]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the metrics of the replies that hold some."""
        contents = []
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            node = reply.metadata.src_node_id
            if reply.has_error():
                self._refuse(server_round, node, "evaluation", str(reply.error.reason))
                continue
            try:
                if self.model.versions is not None:
                    answer = records.read_answer(reply.content)
                    if answer.tag != self.model.versions.tag:
                        raise records.MessageError(f"the client holds another model, tag {answer.tag.hex()}")
                    self._confirmed[node] = answer.version
                self._weight(reply.content)
            except records.MessageError as error:
                self._refuse(server_round, node, "evaluation", str(error))
                continue
            contents.append(reply.content)
        return self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds: Flower's `Strategy.start`, with push and pull in place of a blocking exchange.

        Where `checkpoints` holds one of this federation, the rounds go on from there: its step is not taken again, all
        that came after the step is. The result holds the metrics of the rounds before, too.

        Raises:
            LayoutError: the initial arrays do not fit the layout.
            CheckpointError: the checkpoints are of another federation or model, or one cannot be written.
        """
        log(INFO, "Starting %s: %d rounds", type(self).__name__, num_rounds)
        self.summary()
        result = Result(arrays=initial_arrays)
        resumed = self._resume(grid, result)
        arrays = result.arrays
        if resumed is None and evaluate_fn and (first := evaluate_fn(0, arrays)) is not None:
            result.evaluate_metrics_serverapp[0] = first
        clock = self._clock or getattr(grid, "clock", None) or WallClock()
        for server_round in range(resumed.round if resumed else 1, num_rounds + 1):
            if resumed and server_round == resumed.round:
                step = resumed
            else:
                began, first_refusal = clock.now(), len(self.refusals)
                limit = timeout if self.deadline is None else min(timeout, self.deadline)
                messages = self.configure_train(server_round, arrays, train_config or ConfigRecord(), grid)
                replies = self._exchange(grid, clock, server_round, messages, self._wanted, limit)
                stepped, metrics = self.aggregate_train(server_round, replies) if messages else (None, None)
                if stepped is not None:
                    arrays = result.arrays = stepped
                if metrics is not None:
                    result.train_metrics_clientapp[server_round] = metrics
                step = resume.Step(server_round, clock.now() - began, first_refusal)
                # Durable before any message says what came of this round.
                if self.checkpoints:
                    self._checkpoint(self.checkpoints, grid, result, step)
            since = clock.now()
            messages = self.configure_evaluate(server_round, arrays, evaluate_config or ConfigRecord(), grid)
            if messages:
                replies = self._exchange(grid, clock, server_round, messages, len(messages), timeout)
                evaluated = self.aggregate_evaluate(server_round, replies)
                if evaluated is not None:
                    result.evaluate_metrics_clientapp[server_round] = evaluated
            published = self.model.published
            evaluation = evaluate_fn(server_round, published) if evaluate_fn else None
            if evaluation is not None:
                result.evaluate_metrics_serverapp[server_round] = evaluation
            seconds = step.seconds + (clock.now() - since)
            metrics = result.train_metrics_clientapp.get(server_round)
            self._finish(server_round, published, metrics, evaluation, step.first_refusal, seconds)
        result.arrays = self.model.published
        return result

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def saved(self) -> State:
        """Return all that the rounds depend on, after a round's step and before the next round's orders."""
        own = State(
            {"sent_by_layer": self._sent_by_layer},
            {
                "federation": self.federation,
                "seed": self.seed,
                "tickets": self._tickets,
                "accepted": pairs(self._accepted),
                "confirmed": pairs(self._confirmed),
                "late": [(message_id, *order) for message_id, order in self._late.items()],
                "refusals": self.refusals,
                "lost_states": self.lost_states,
                "messages": self.messages,
                "updates_seen": self._updates_seen,
            },
        )
        return State.of(own=own, model=self.model.saved(), ledger=State(self.ledger.arrays(), {}))

    def restore(self, state: State, arrays: ArrayRecord) -> None:
        """Take up what `saved` returned.

        Args:
            state: what `saved` returned.
            arrays: a model of the same arrays, for their order; the values do not matter.

        Raises:
            CheckpointError: the state is of another federation, seed or model.
        """
        own = state.part("own")
        for name in ("federation", "seed"):
            if own.meta[name] != getattr(self, name):
                raise CheckpointError(
                    f"the checkpoint has {name} {own.meta[name]!r}, this run has {getattr(self, name)!r}; give each"
                    " federation a folder of its own"
                )
        self._adopt(arrays)
        self.model.restore(state.part("model"))
        self.ledger.replace(state.part("ledger").arrays)
        self._sent_by_layer = own.arrays["sent_by_layer"]
        self._updates_seen = own.meta["updates_seen"]
        self._tickets = own.meta["tickets"]
        self._accepted, self._confirmed = dict(own.meta["accepted"]), dict(own.meta["confirmed"])
        self._late = {message_id: exchange.Open(node, number) for message_id, node, number in own.meta["late"]}
        self.refusals = [Refusal(*entry) for entry in own.meta["refusals"]]
        self.lost_states, self.messages = own.meta["lost_states"], own.meta["messages"]

    def _checkpoint(self, folder: CheckpointFolder, grid: Grid, result: Result, step: resume.Step) -> None:
        parts = {"strategy": self.saved(), "result": resume.saved(result, step)}
        parts |= {name: companion.saved() for name, companion in self._with_grid(grid).items()}
        folder.save(step.round, State.of(**parts))

    def _resume(self, grid: Grid, result: Result) -> resume.Step | None:
        """Go back to the newest checkpoint; without one, take the result's arrays as the model."""
        if self.checkpoints and self._model is not None:
            raise CheckpointError(
                "with checkpoints a strategy runs `start` once; make another one, with its own folder"
            )
        found = self.checkpoints.newest() if self.checkpoints else None
        if found is None:
            self._adopt(result.arrays)
            result.arrays = self.model.arrays
            return None
        self.restore(found.state.part("strategy"), result.arrays)
        result.arrays = self.model.arrays
        step = resume.restore(found.state.part("result"), result)
        companions = self._with_grid(grid)
        for name, companion in companions.items():
            companion.restore(found.state.part(name))
        if "grid" not in companions:
            self._late = {}  # nobody brings these replies any more
        if found.skipped:  # clients may have seen tickets that this checkpoint knows nothing of
            self._tickets += resume.TICKETS_APART
        log(INFO, "Resumed from the checkpoint of round %d", step.round)
        return step

    def _with_grid(self, grid: Grid) -> dict[str, Resumable]:
        return {**self.companions, **({"grid": grid} if isinstance(grid, Resumable) else {})}

    # ---- the exchange of messages ----------------------------------------------------------------------------------

    def _sample(
        self, grid: Grid, fraction: float, least: int, extra: int, server_round: int, purpose: str
    ) -> list[int]:
        waited = 0
        while True:
            nodes = sorted(grid.get_node_ids())
            wanted = max(int(len(nodes) * fraction), least)
            if len(nodes) >= max(self.min_available_nodes, wanted):
                break
            if waited % 30 == 0:
                log(
                    INFO,
                    "Waiting for nodes: %d are connected, %d are needed",
                    len(nodes),
                    max(self.min_available_nodes, wanted),
                )
            time.sleep(1)
            waited += 1
        generator = np.random.default_rng(seeds.derive(self.federation, self.seed, server_round, purpose))
        chosen = generator.choice(len(nodes), min(len(nodes), wanted + extra), replace=False)
        return sorted(nodes[index] for index in chosen)

    def _exchange(
        self, grid: Grid, clock: Clock, server_round: int, messages: list[Message], wanted: int, limit: float
    ) -> Iterator[Message]:
        key, arrays = self.arrayrecord_key, self.model.arrays
        known = {id(arrays): records.item_size(key, arrays)} if any(key in m.content for m in messages) else {}

        def bill(server_round: int, node: int, direction: Direction, message: Message) -> None:
            self.bill(server_round, node, direction, message, known)

        return exchange.exchange(
            grid, clock, server_round, messages, wanted=wanted, limit=limit, late=self._late, bill=bill,
            refuse=self._refuse, from_the_beginning=self._from_the_beginning,
        )  # fmt: skip

    def _message(
        self, node: int, server_round: int, ticket: int, kind: str, config: Mapping[str, Any], whole: bool = False
    ) -> Message:
        """Return an order to a node, with what brings it to the newest version; `whole`: with all arrays."""
        versions = self.model.versions
        order = records.Order(self.federation, ticket, server_round, 0, self.model.version, self._accepted.get(node, 0))
        if versions is not None:
            order = order._replace(download=versions.download(self._confirmed.get(node), whole))
        own = ConfigRecord({**config, "server-round": server_round, **records.write_order(order)})
        content = RecordDict({self.configrecord_key: own})
        if order.download is None or order.download.base is None:
            content = RecordDict({self.arrayrecord_key: self.model.arrays, self.configrecord_key: own})
        return Message(content=content, message_type=kind, dst_node_id=node)

    def _from_the_beginning(self, message: Message) -> Message:
        """Return the same order for a client that could not use the delta that it was sent."""
        node = message.metadata.dst_node_id
        held = self._confirmed.pop(node, None)
        log(WARNING, "node %d cannot get from version %s to %d by a delta", node, held, self.model.version)
        order = records.read_order(message.content)
        config = records.without_order(message.content.config_records[self.configrecord_key])
        # A client that was thought to hold nothing had all that is needed, but for names and shapes.
        kind = message.metadata.message_type
        again = self._message(node, order.round, order.ticket, kind, config, whole=held is None)
        if node in self._orders:
            self._orders[node] = records.read_order(again.content)
        return again

    def _answers(self, server_round: int, replies: Iterable[Message]) -> Iterator["_Checked"]:
        """Yield the replies that fit their tickets; refuse the others."""
        for reply in replies:
            node = reply.metadata.src_node_id
            order = self._orders.get(node)
            if reply.has_error():
                self._refuse(server_round, node, "error", str(reply.error.reason))
                continue
            content = records.unfolded(reply.content)
            try:
                answer = records.read_answer(content)
                weight = 0.0 if answer.error or answer.needs_model else self._weight(content)
            except records.MessageError as error:
                self._refuse(server_round, node, "malformed", str(error))
                continue
            if answer.needs_model:
                self._confirmed.pop(node, None)
                self._refuse(server_round, node, "no model", "the client could not use the model that it was sent")
            elif answer.error:
                self._tickets = max(self._tickets, answer.answered)  # this server began anew, and its tickets are old
                self._refuse(server_round, node, "client error", answer.error)
            elif order is None or answer.ticket != order.ticket:
                self._refuse(
                    server_round, node, "wrong ticket", f"ticket {answer.ticket}, open: {order and order.ticket}"
                )
            elif answer.version != order.version:
                self._refuse(server_round, node, "wrong version", f"version {answer.version}, sent: {order.version}")
            elif order.download and answer.tag != order.download.tag:
                self._refuse(server_round, node, "wrong model", f"tag {answer.tag.hex()} for version {answer.version}")
            else:
                if order.download:
                    self._confirmed[node] = answer.version
                if answer.lost_state:
                    log(WARNING, "node %d has lost what it kept back of earlier updates", node)
                del self._orders[node]  # the ticket is closed: the same answer again does not fit it
                metrics = _metrics_only(content)
                yield _Checked(
                    node, answer.ticket, weight, answer.payload, answer.buffers, metrics, answer.version,
                    order.download, answer.lost_state,
                )  # fmt: skip

    def _weight(self, content: RecordDict) -> float:
        """Return the number of examples that a reply claims. Raises MessageError when it is missing or out of range."""
        found = [record for record in content.metric_records.values() if self.weighted_by_key in record]
        if len(found) != 1:
            raise records.MessageError(
                f"expected one MetricRecord with {self.weighted_by_key!r} in the app's reply, found {len(found)}"
            )
        value = found[0][self.weighted_by_key]
        if isinstance(value, list) or not (math.isfinite(value) and 0 < value <= self.max_examples):
            raise records.MessageError(
                f"{self.weighted_by_key!r} must be a number above 0 and at most {self.max_examples:g}, and is {value}"
            )
        return float(value)

    # ---- the model --------------------------------------------------------------------------------------------------

    def _adopt(self, arrays: ArrayRecord) -> None:
        """Take the model from outside, at the start or when it is not the one that this strategy made last."""
        if self._model is None:
            self._model = GlobalModel(arrays, self._layout, self._make_optimizer, self._downlink, self._averaging)
            self._total = Accumulator(self._model.layout.size)
            self._sent_by_layer = np.zeros(len(self._model.layout.parameters), np.int64)
        elif arrays is not self._model.arrays:
            self._model.replace(arrays)

    @property
    def model(self) -> GlobalModel:
        """The global model. Raises RuntimeError before `start` or `configure_train` has given one."""
        if self._model is None:
            raise RuntimeError("SparseFed has no model yet; it gets one from `start` or `configure_train`")
        return self._model

    def density_by_layer(self) -> list[tuple[str, int, float]]:
        """Return for each parameter its name, its size and the mean number of its entries in an accepted update.

        Empty before the first round.
        """
        if self._model is None:
            return []
        layout = self._model.layout
        sent = self._sent_by_layer / max(1, self._updates_seen)
        return [
            (spec.name, int(size), float(mean))
            for spec, size, mean in zip(layout.parameters, np.diff(layout.offsets), sent, strict=True)
        ]

    def _count_by_layer(self, update: Update) -> None:
        offsets = self.model.layout.offsets
        within = np.searchsorted(update.positions, offsets) if isinstance(update, Sparse) else offsets
        self._sent_by_layer += np.diff(within)
        self._updates_seen += 1

    # ---- the books -------------------------------------------------------------------------------------------------

    def bill(
        self, server_round: int, node: int, direction: Direction, message: Message, known: dict[int, int] | None = None
    ) -> None:
        """Enter the serialised content of a message in the ledger.

        Args:
            server_round: round that the message belongs to.
            node: the node that sends or gets it.
            direction: "up" to the server, "down" from it.
            message: the message.
            known: sizes of records already measured, by `id(record)`.
        """
        self.messages[direction] += message.metadata.message_type.partition(".")[0] == "train"
        for kind, size in records.sizes(message, known).items():
            self.ledger.record(server_round, node, direction, kind, size)

    def _refuse(self, server_round: int, node: int, reason: str, detail: str) -> None:
        self.refusals.append(Refusal(server_round, node, reason, detail))
        log(WARNING, "round %d: reply of node %d refused (%s): %s", server_round, node, reason, detail)

    def _finish(
        self,
        server_round: int,
        arrays: ArrayRecord,
        metrics: MetricRecord | None,
        evaluation: MetricRecord | None,
        first_refusal: int,
        seconds: float,
    ) -> None:
        summary = RoundSummary(
            round=server_round,
            arrays=arrays,
            replies=int(metrics["replies"]) if metrics else 0,  # type: ignore[arg-type]
            refusals=self.refusals[first_refusal:],
            up_bytes=self.ledger.total(direction="up", round=server_round),
            down_bytes=self.ledger.total(direction="down", round=server_round),
            seconds=seconds,
            train=metrics,
            evaluation=evaluation,
        )
        log(
            INFO,
            "round %d: %d replies, %d refused, %d bytes up, %d bytes down",
            server_round, summary.replies, len(summary.refusals), summary.up_bytes, summary.down_bytes,
        )  # fmt: skip
        if self.on_round:
            self.on_round(summary)


class _Checked(NamedTuple):
    """A reply that fits its ticket; its payload is still to be decoded."""

    node: int
    ticket: int
    weight: float
    payload: bytes
    buffers: bytes
    content: RecordDict  # without the payload
    version: int  # that the client trained from
    download: Download | None  # that brought it there
    lost_state: bool  # it has lost what it kept back


def _metrics_only(content: RecordDict) -> RecordDict:
    return RecordDict(dict(content.metric_records))


def weighted_metrics(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Return the weighted mean of every scalar metric, over the replies that have it.

    Unlike Flower's own, replies need not hold the same metrics.

    Args:
        contents: replies, each with one MetricRecord that holds `weighted_by_key`.
        weighted_by_key: the weight's name; it is left out of the result.
    """
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for content in contents:
        scalars = {
            name: float(value)
            for record in content.metric_records.values()
            for name, value in record.items()
            if not isinstance(value, list) and math.isfinite(value)
        }
        weight = scalars.pop(weighted_by_key)
        for name, value in scalars.items():
            sums[name] = sums.get(name, 0.0) + weight * value
            weights[name] = weights.get(name, 0.0) + weight
    return MetricRecord({name: value / weights[name] for name, value in sums.items()})
