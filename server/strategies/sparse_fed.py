"""`SparseFed`: a Flower strategy that adds up encoded updates, in place of `FedAvg`.

Unlike Flower's own, one odd reply costs that client this round and nobody else, no dense vector is made for a
client, and `start` pushes and pulls, so that a round can end at a deadline or once enough replies are in.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log
from numpy.typing import NDArray

from fedpress.compression import seeds
from fedpress.compression.errors import PayloadError
from fedpress.compression.ledger import Direction, Ledger
from fedpress.compression.messages import orders, records
from fedpress.compression.models.pruning import dynamic_sparsity
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.timing import Timer
from fedpress.server.checkpoint.checkpoint_folder import CheckpointFolder
from fedpress.server.checkpoint.state import Resumable
from fedpress.server.fusion import client_ensemble
from fedpress.server.fusion.client_ensemble import ClientModels, Fusion
from fedpress.server.model import optimizers
from fedpress.server.model.global_model import GlobalModel
from fedpress.server.model.mask_schedules import Ballot, Fixed, MaskSchedule
from fedpress.server.model.optimizers import ServerOptimizer
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds import exchange, metrics, sampling
from fedpress.server.rounds.accounting import Accounting, RoundSummary
from fedpress.server.rounds.aggregate import ReplyMean
from fedpress.server.rounds.exchange import Clock, UnderWay, WallClock
from fedpress.server.rounds.orders import Checked, Orders
from fedpress.server.rounds.threaded_grid import PatientGrid
from fedpress.server.strategies import resume
from fedpress.server.strategies.buffered import Buffered

MAX_EXAMPLES = 1e9
"""Default cap on the number of examples that a reply may claim: its weight in the mean."""


class SparseFed(resume.Resuming, Strategy):
    """Federated averaging of encoded updates: a drop-in for `FedAvg` where clients use `compress(...)`.

    The first block of arguments is FedAvg's, with the same meaning and defaults.

    Args:
        optimizer: the server's rule on the mean update; `optimizers.sgd(1.0)` is FedAvg.
        downlink: how the model goes down: deltas of a held model that clients keep (`versions.Downlink`); None: whole.
        averaging: decay of the mean over the rounds that is evaluated and returned (`average.Average`), in [0, 1);
            0: the newest model is.
        masks: which weights the model has, from round to round (`masks.Schedule`); None: all of them.
        prediction: factor of what the download predicts of an update; 0: nothing. Other than 0 exactly where clients
            use `cafe.aggregate_feedback`, and then the same as there. Needs a downlink.
        layout: which arrays are parameters and which buffers; by default guessed by the usual names. Clients must
            use the same.
        schedule: None: synchronous rounds. `Buffered(size)`: `fraction_train` of the nodes are at work at any time,
            and a round is what happens until `size` replies are in and the model steps.
        over_selection: nodes sampled beyond the wanted number; the round ends once the wanted number has answered, and
            later replies are refused (their mass stays with the client).
        min_replies: with fewer replies that count, the round makes no step and refuses them all.
        deadline: seconds after which an order without a reply is closed as refused; None waits for `start`'s timeout.
        max_examples: replies that claim more examples are refused.
        federation: names the federation; clients keep their state under it.
        seed: for sampling nodes.
        ledger: counts every message's serialized content; by default a fresh one, in `self.ledger`.
        on_round: called with each round's summary.
        on_accepted: called with round, node and payload of each reply that counted, in the order of the nodes.
        clock: what deadlines follow; by default the grid's own `clock` if it has one, else real time.
        checkpoints: folder for a checkpoint of every round, from which `start` goes on by itself after a kill; None:
            there are none. One federation to a folder.
        clients: is kept up to date with the client models of the last step, and goes into checkpoints; None: nobody
            needs them.
        fusion: lets each step end with a distillation of the global model from the client models
            (`client_ensemble.Fusion`).

    Attributes:
        books: what is counted: bytes, refusals, lost states. `ledger` and `refusals` are those of the books.
        phases: seconds by what they went into: `orders`, `replies` (waiting for them), `step`, `checkpoint`,
            `evaluation`, `report` (with what `on_round` does, such as making students).
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
        masks: MaskSchedule | None = None,
        prediction: float = 0.0,
        layout: Layout | None = None,
        schedule: Buffered | None = None,
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
        clients: ClientModels | None = None,
        fusion: Fusion | None = None,
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
        if schedule is not None and over_selection:
            raise ValueError("over_selection has no meaning with a buffer; fraction_train says how many are at work")
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
        self.train_metrics_aggr_fn = train_metrics_aggr_fn or metrics.weighted_metrics
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn or metrics.weighted_metrics
        self.schedule = schedule
        self.over_selection = over_selection
        self.min_replies = min_replies
        self.prediction = prediction
        self.deadline = deadline
        self.max_examples = max_examples
        self.federation = federation
        self.seed = seed
        self.books = Accounting(ledger)
        self.ledger, self.refusals = self.books.ledger, self.books.refusals
        self.on_round = on_round
        self.on_accepted = on_accepted
        self.clients = clients if clients is not None or fusion is None else ClientModels()
        self.fusion = fusion
        self.companions: dict[str, Resumable] = {} if self.clients is None else {"clients": self.clients}
        self.checkpoints = CheckpointFolder(checkpoints) if isinstance(checkpoints, Path | str) else checkpoints
        self._make_optimizer = optimizer or optimizers.sgd()
        self._downlink = downlink
        self._averaging = averaging
        self._masks: MaskSchedule = masks or Fixed(None)
        self._layout = layout
        self._clock = clock
        self._orders = Orders(federation, arrayrecord_key, configrecord_key, self.books)
        self._under_way = UnderWay()
        self._buffer: list[Checked] = []  # replies that the next step takes in; empty after it
        self.phases = Timer()
        self._wanted = 0
        self._asked: set[int] = set()  # nodes with an order in this round: one each, whatever comes of it
        self._model: GlobalModel | None = None
        self._mean = ReplyMean(Layout(()))

    # ---- Flower's hooks --------------------------------------------------------------------------------------------

    def summary(self) -> None:
        """Log what this strategy will do."""
        log(INFO, "\t├──> Sampling: fraction %.2f, over-selection %d", self.fraction_train, self.over_selection)
        log(INFO, "\t├──> A round needs %d replies, deadline %s", self.min_replies, self.deadline or "none")
        log(INFO, "\t└──> Federation: %r", self.federation)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample nodes and open a ticket for each; with a buffer, for as many as are to be at work and are not."""
        if self.fraction_train == 0.0:
            return []
        self._adopt(arrays)
        if self.schedule is None:
            self._orders.open = {}
        self._asked = set(self._orders.open)
        messages = self._orders_for(server_round, len(self._orders.open), config, grid)
        self._wanted = self.schedule.size if self.schedule else max(1, len(messages) - self.over_selection)
        return messages

    def _orders_for(self, server_round: int, at_work: int, config: ConfigRecord, grid: Grid) -> list[Message]:
        """Open tickets for nodes that had none in this round, until enough nodes are at work."""
        purpose = f"train {self._orders.tickets}" if self._asked else "train"
        nodes = self._sample(grid, self.fraction_train, self.min_train_nodes, server_round, purpose, at_work)
        self._asked.update(nodes)
        asked = self._masks.asks(server_round)
        return [self._orders.train(node, server_round, config, self.model, asked) for node in nodes]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add up the updates of this round's good replies and step the model; refuse the others, each for itself."""
        first_refusal = len(self.refusals)
        limit = self.schedule.max_staleness if self.schedule else None
        for reply in replies:
            answer = self._orders.checked(server_round, reply, self._examples, self.model, limit)
            if answer:
                self._buffer.append(answer)
        answers = sorted(self._buffer, key=lambda answer: answer.node)  # the sum's fixed order: a node is there once
        self._buffer = []
        versions, asked = self.model.versions, self._masks.asks(server_round)
        ballot = Ballot(self.model.layout, asked) if asked else None
        self._mean.reset()
        counted: list[Checked] = []
        for answer in answers:
            reference = versions.support(answer.download) if versions else None
            predictor = None
            if versions and self.prediction:
                predictor = versions.predictor(answer.download, self.model.version - answer.staleness)
            weight = answer.weight * (self.schedule.discount(answer.staleness) if self.schedule else 1.0)
            try:
                vote = ballot.read(answer.vote) if ballot and answer.vote else None
                update = self._mean.add(answer.payload, answer.buffers, weight, reference, predictor, self.prediction)
            except PayloadError as error:
                self.books.refuse(server_round, answer.node, "undecodable", f"{type(error).__name__}: {error}")
                continue
            self.books.count_entries(update, self.model.layout)
            counted.append(answer)
            if ballot and vote is not None:
                ballot.add(vote, weight)
        heard = {answer.node for answer in answers} | {refusal.node for refusal in self.refusals[first_refusal:]}
        at_work = self._under_way.nodes()  # nobody, without a buffer
        for node in sorted(self._orders.open.keys() - heard - at_work):
            self.books.refuse(server_round, node, "late", "no reply before the order was closed")
        self._orders.open = {node: order for node, order in self._orders.open.items() if node in at_work}
        if len(counted) < self.min_replies:
            detail = f"{len(counted)} replies, {self.min_replies} are needed for a step"
            for answer in counted:
                self.books.refuse(server_round, answer.node, "too few", detail)
            counted = []
        metrics = MetricRecord()
        if counted:
            if self.clients is not None:
                self.clients.take(counted)
            self._step(*self._mean.result(self.model.buffers), server_round, ballot)
            for answer in counted:
                self._orders.accept(answer)
                if self.on_accepted:
                    self.on_accepted(server_round, answer.node, answer.payload)
            metrics = self.train_metrics_aggr_fn([answer.content for answer in counted], self.weighted_by_key)
            if self.schedule:
                behind = [answer.staleness for answer in counted]
                metrics["staleness-mean"], metrics["staleness-max"] = sum(behind) / len(behind), max(behind)
        refused = self.refusals[first_refusal:]
        metrics["replies"] = len(counted)
        metrics["refused"] = len(refused)
        for reason, count in Counter(refusal.reason for refusal in refused).items():
            metrics[f"refused-{reason.replace(' ', '-')}"] = count
        return (self.model.arrays if counted else None), metrics

    def _refine(self, server_round: int) -> Callable[[client_ensemble.Arrays], client_ensemble.Arrays] | None:
        fusion, clients = self.fusion, self.clients
        if fusion is None or clients is None or not fusion.due(server_round):
            return None
        return lambda arrays: fusion.fused(arrays, clients, server_round)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample nodes that evaluate the model on their own data."""
        if self.fraction_evaluate == 0.0:
            return []
        self._adopt(arrays)
        nodes = self._sample(grid, self.fraction_evaluate, self.min_evaluate_nodes, server_round, "evaluate")
        return [self._orders.evaluate(node, server_round, config, self.model) for node in nodes]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the metrics of the replies that hold some."""
        contents = []
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            node = reply.metadata.src_node_id
            if reply.has_error():
                self.books.refuse(server_round, node, "evaluation", str(reply.error.reason))
                continue
            try:
                self._orders.evaluated(reply.content, node, self.model)
                self._examples(reply.content)
            except orders.MessageError as error:
                self.books.refuse(server_round, node, "evaluation", str(error))
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
        clock = self._clock or getattr(grid, "clock", None)
        if clock is None:
            clock, grid = WallClock(), PatientGrid(grid)
        for server_round in range(resumed.round if resumed else 1, num_rounds + 1):
            if resumed and server_round == resumed.round:
                step = resumed
            else:
                began, first_refusal = clock.now(), len(self.refusals)
                limit = timeout if self.deadline is None else min(timeout, self.deadline)
                config = train_config or ConfigRecord()
                with self.phases.of("orders"):
                    replies = self._ask(grid, clock, server_round, arrays, config, limit)
                with self.phases.of("step"):
                    stepped, metrics = self._take(server_round, replies)
                if stepped is not None:
                    arrays = result.arrays = stepped
                if metrics is not None:
                    result.train_metrics_clientapp[server_round] = metrics
                step = resume.Step(server_round, clock.now() - began, first_refusal)
                # Durable before any message says what came of this round.
                if self.checkpoints:
                    with self.phases.of("checkpoint"):
                        self._save(self.checkpoints, grid, result, step)
            since = clock.now()
            config = evaluate_config or ConfigRecord()
            messages = self.configure_evaluate(server_round, arrays, config, grid)
            if messages:
                apart = UnderWay(late=self._under_way.late)
                replies = self._exchange(grid, clock, server_round, messages, config, apart, timeout)
                evaluated = self.aggregate_evaluate(server_round, replies)
                if evaluated is not None:
                    result.evaluate_metrics_clientapp[server_round] = evaluated
            published = self.model.published
            with self.phases.of("evaluation"):
                evaluation = evaluate_fn(server_round, published) if evaluate_fn else None
            if evaluation is not None:
                result.evaluate_metrics_serverapp[server_round] = evaluation
            seconds = step.seconds + (clock.now() - since)
            metrics = result.train_metrics_clientapp.get(server_round)
            summary = self._summary(published, metrics, evaluation, step._replace(seconds=seconds))
            epochs = self.model.epochs
            summary.epoch, summary.density = epochs.number, dynamic_sparsity.density(epochs.mask, self.model.layout)
            if self.on_round:
                with self.phases.of("report"):
                    self.on_round(summary)
        result.arrays = self.model.published
        return result

    # ---- a round ---------------------------------------------------------------------------------------------------

    def _ask(
        self, grid: Grid, clock: Clock, server_round: int, arrays: ArrayRecord, config: ConfigRecord, limit: float
    ) -> Iterator[Message] | None:
        """Send a round's orders and return its replies as they come; None: nobody is asked."""
        messages = self.configure_train(server_round, arrays, config, grid)
        replies = self._exchange(grid, clock, server_round, messages, config, self._under_way, limit)
        replies = self.phases.each("replies", replies)
        return replies if messages or self._orders.open else None

    def _take(
        self, server_round: int, replies: Iterator[Message] | None
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the step of a round: the model after it, None where there is no step; and the round's metrics."""
        return (None, None) if replies is None else self.aggregate_train(server_round, replies)

    def _step(
        self, mean_update: Vector, buffers: dict[str, NDArray[Any]], server_round: int, ballot: Ballot | None
    ) -> None:
        epoch = self.model.epochs.number
        self.model.step(
            mean_update,
            buffers,
            refine=self._refine(server_round),
            next_mask=lambda master, layout: self._masks.after(server_round, master, layout, ballot),
        )
        if self.model.epochs.number != epoch:
            self._mean = ReplyMean(self.model.layout)

    def _summary(
        self, published: ArrayRecord, metrics: MetricRecord | None, evaluation: MetricRecord | None, step: resume.Step
    ) -> RoundSummary:
        return self.books.summary(step.round, published, metrics, evaluation, step.first_refusal, step.seconds)

    @property
    def taken_weight(self) -> float:
        """The weight of all updates of the last step together."""
        return self._mean.weight

    @property
    def accounts(self) -> dict[str, Accounting]:
        """The books of every model that this strategy trains, by name; the global model's name is empty."""
        return {"": self.books}

    # ---- the exchange of messages ----------------------------------------------------------------------------------

    def _sample(
        self, grid: Grid, fraction: float, least: int, server_round: int, purpose: str, at_work: int = 0
    ) -> list[int]:
        first = purpose in ("train", "evaluate")  # where some are at work already, nobody waits for more to connect
        nodes = sampling.available(grid, max(least, self.min_available_nodes) if first else 0)
        wanted = max(int(len(nodes) * fraction), least) - at_work
        free = nodes
        if purpose != "evaluate":
            wanted += self.over_selection
            free = [node for node in nodes if node not in self._asked]
        return sampling.draw(free, wanted, seeds.derive(self.federation, self.seed, server_round, purpose))

    def _exchange(
        self,
        grid: Grid,
        clock: Clock,
        server_round: int,
        messages: list[Message],
        config: ConfigRecord,
        under_way: UnderWay,
        limit: float,
    ) -> Iterator[Message]:
        training = under_way is self._under_way
        kind = MessageType.TRAIN if training else MessageType.EVALUATE
        key, arrays = self.arrayrecord_key, self.model.arrays
        known = {id(arrays): records.item_size(key, arrays)} if any(key in m.content for m in messages) else {}

        def bill(server_round: int, node: int, direction: Direction, message: Message) -> None:
            self.books.bill(server_round, node, direction, message, known)

        def refill(at_work: int) -> list[Message]:
            return self._orders_for(server_round, at_work, config, grid)

        return exchange.exchange(
            grid, clock, server_round, messages, under_way, limit=limit, bill=bill, refuse=self.books.refuse,
            enough=lambda: training and len(self._buffer) >= self._wanted,
            from_the_beginning=lambda node: self._orders.from_the_beginning(
                node, server_round, kind, config, self.model
            ),
            refill=refill if training and self.schedule else None,
        )  # fmt: skip

    def _examples(self, content: RecordDict) -> float:
        return metrics.examples(content, self.weighted_by_key, self.max_examples)

    # ---- the model --------------------------------------------------------------------------------------------------

    def _adopt(self, arrays: ArrayRecord) -> None:
        """Take the model from outside, at the start or when it is not the one that this strategy made last."""
        if self._model is None:
            self._model = GlobalModel(
                arrays, self._layout, self._make_optimizer, self._downlink, self._averaging, self._masks.first
            )
            self._mean = ReplyMean(self._model.layout)
            if self.clients is not None:
                self.clients.attach(self._model, self.prediction)
        elif arrays is not self._model.arrays:
            self._model.replace(arrays)

    @property
    def model(self) -> GlobalModel:
        """The global model. Raises RuntimeError before `start` or `configure_train` has given one."""
        if self._model is None:
            raise RuntimeError("SparseFed has no model yet; it gets one from `start` or `configure_train`")
        return self._model

    @property
    def tiers(self) -> dict[int, str]:
        """The class of devices that a node says it belongs to, for those that have said so with an update."""
        return self._orders.tiers

    def density_by_layer(self) -> list[tuple[str, int, float]]:
        """Return for each parameter its name, its size and the mean number of its entries in an accepted update.

        Empty before the first round.
        """
        return [] if self._model is None else self.books.density_by_layer(self._model.layout)
