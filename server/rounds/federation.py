"""One model and the nodes that train it, round by round: orders, exchange, mean, accounting and masks.

A strategy holds one federation for each model, and decides when it sends orders and when it takes a step.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedpress.compression import seeds
from fedpress.compression.errors import PayloadError, ValuesTooLarge
from fedpress.compression.ledger import Direction
from fedpress.compression.messages import records
from fedpress.compression.models.pruning import dynamic_sparsity
from fedpress.compression.timing import Timer
from fedpress.server.checkpoint.state import CheckpointError
from fedpress.server.fusion.client_ensemble import ClientModels, Fusion, SentUpdate
from fedpress.server.model.global_model import GlobalModel, ModelState
from fedpress.server.rounds import exchange, metrics
from fedpress.server.rounds.accounting import UNANSWERED, Accounting, AccountingState, Refusal, RoundSummary
from fedpress.server.rounds.exchange import Clock, UnderWay
from fedpress.server.rounds.orders import Orders, Tickets, Upload
from fedpress.server.rounds.sampling import Sampler
from fedpress.server.rounds.settings import MessageFormat, ModelSettings, Rounds, Sampling
from fedpress.server.rounds.stepper import Stepper, StepRecord, WeighedUpdate

TICKETS_APART = 1_000_000
"""Added to the tickets where the newest checkpoint was damaged. Clients have answered tickets that the older one does
not know, and would take a ticket with the same number for the same order."""


class Round(NamedTuple):
    """A round and its means.

    Attributes:
        number: number of the round, from 1.
        grid: grid of the nodes.
        clock: clock of `limit`.
        timer: counts the seconds of the wait for replies.
        config: the application's configuration for the nodes.
        limit: seconds after which an order counts as unanswered.
    """

    number: int
    grid: Grid
    clock: Clock
    timer: Timer
    config: ConfigRecord
    limit: float


class FederationState(NamedTuple):
    """State of a federation after a round's step and before the next round's orders.

    Attributes:
        name, seed: those of the federation.
        first_refusal: index of the round's first refusal.
        metrics: metrics of the round; None: there were no orders.
        tickets, under_way, accounting: states of the parts.
        model: state of the model; None: it is not in here, but what leads to it is in a journal.
    """

    name: str
    seed: int
    first_refusal: int
    metrics: dict[str, Any] | None
    tickets: Tickets
    under_way: UnderWay
    model: ModelState | None
    accounting: AccountingState


class Federation:
    """One model and the nodes that train it.

    Args:
        name: name of the federation; clients keep their state under it.
        seed: seed of the sampling of nodes.
        sampling: fractions and numbers of nodes that take part.
        rounds: end of a round, and the replies that count.
        messages: keys of the records in messages, and the aggregation of metrics.
        model: optimizer, downlink, masks and layout of the model.
        clients: receives the client models of each step; None: they are not needed.
        fusion: distillation of the model from the client models at the end of a step.
        on_accepted: called with round, node and payload of each reply that counted, in the order of the nodes.

    Attributes:
        sampling, rounds: as given; they may be replaced between two rounds.
        journaled: whether a journal is to hold what the steps took in.
        accounting: bytes, refusals, lost states.
        orders: tickets and verdicts.
        under_way: messages without a reply.
        metrics: metrics of the last round; None: there were no orders.
    """

    def __init__(
        self,
        name: str = "default",
        seed: int = 0,
        *,
        sampling: Sampling | None = None,
        rounds: Rounds | None = None,
        messages: MessageFormat | None = None,
        model: ModelSettings | None = None,
        clients: ClientModels | None = None,
        fusion: Fusion | None = None,
        on_accepted: Callable[[int, int, bytes], None] | None = None,
    ) -> None:
        self.name = name
        self.seed = seed
        self.sampling = sampling or Sampling()
        self.rounds = rounds or Rounds()
        self.on_accepted = on_accepted
        self.journaled = False
        self.accounting = Accounting()
        self._format = messages or MessageFormat()
        self._settings = model or ModelSettings()
        self._stepper = Stepper(self._settings, clients, fusion)
        self.orders = Orders(
            name, self._format.arrayrecord_key, self._format.configrecord_key, self.accounting,
            self._format.piece_bytes, self._settings.base,
        )  # fmt: skip
        self.under_way = UnderWay()
        self.metrics: MetricRecord | None = None
        self._first_refusal = 0  # index of the round's first refusal
        self._uploads: list[Upload] = []  # that the next step takes in; empty after it
        self._wanted = 0  # uploads that end the round
        self._sampler = Sampler(lambda *purpose: seeds.derive(self.name, self.seed, *purpose))
        self._recorded: int | None = None  # checksum of the model as the newest checkpoint or journal has it
        self._intact = False  # whether the round's step began with that model
        self._config = ConfigRecord()  # of this round's orders
        self._unbilled: list[tuple[int, Message]] = []  # messages for an exchange of the caller's own

    def draw_tickets_from_seed(self) -> None:
        """Make the tickets reproducible, for a simulation; those of other servers nobody can tell in advance."""
        self.orders.tickets.secret = seeds.derive(self.name, self.seed, "tickets").to_bytes(8)

    # ---- the model -------------------------------------------------------------------------------------------------

    def adopt(self, arrays: ArrayRecord) -> None:
        """Take over a model, at the start or where it is not the one that the last step made.

        Raises:
            LayoutError: the arrays do not fit the layout, or none of them can be trained.
        """
        self._stepper.adopt(arrays)

    @property
    def started(self) -> bool:
        """Whether there is a model."""
        return self._stepper.started

    @property
    def model(self) -> GlobalModel:
        """The model.

        Raises:
            RuntimeError: there is none yet.
        """
        return self._stepper.model

    @property
    def clients(self) -> ClientModels | None:
        """The client models of the last step; None: they are not needed."""
        return self._stepper.clients

    def fuse(self, clients: ClientModels, fusion: Fusion | None) -> None:
        """Collect the client models of each step from now on, and distill the model from them.

        Args:
            clients: receives the client models.
            fusion: the distillation at the end of a step; None: there is none.
        """
        self._stepper.clients, self._stepper.fusion = clients, fusion

    @property
    def taken_weight(self) -> float:
        """Sum of the weights in the last round's step; 0: there was no step."""
        return self._stepper.weight

    @property
    def answered(self) -> bool | None:
        """Whether a node has answered an order of the last round, if only with an error; None: there were no orders."""
        if self.metrics is None:
            return None
        refused = self.accounting.refusals[self._first_refusal :]
        return bool(self.metrics[metrics.REPLIES]) or any(refusal.reason not in UNANSWERED for refusal in refused)

    # ---- a round ---------------------------------------------------------------------------------------------------

    def ask(self, current: Round, messages: list[Message]) -> Iterator[Message] | None:
        """Send a round's orders, and return an iterator over the replies; None: there are no orders.

        Args:
            current: the round.
            messages: its orders, those of `open_orders`.
        """
        replies = self._exchange(current, messages, MessageType.TRAIN, self.under_way)
        replies = current.timer.each("replies", replies)
        return replies if messages or self.orders.tickets.open else None

    def open_orders(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid, *, own_exchange: bool = False
    ) -> list[Message]:
        """Sample nodes and open a ticket for each; with a buffer, until enough nodes are at work.

        Args:
            server_round: number of the round.
            arrays: the model of the orders.
            config: the application's configuration for the nodes.
            grid: grid of the nodes.
            own_exchange: whether the caller sends the messages by itself, and `take` gets all replies at once: they are
                billed then.

        Returns:
            The orders as messages; empty where no client trains.
        """
        self._first_refusal = len(self.accounting.refusals)
        self._config = config
        if self.sampling.fraction_train == 0.0:
            return []
        self.adopt(arrays)
        schedule, tickets = self.rounds.schedule, self.orders.tickets
        if schedule is None:
            tickets.open = {}
        self._sampler.begin(server_round, tickets.open)
        messages = self._refill(server_round, len(tickets.open), config, grid)
        self._wanted = schedule.size if schedule else max(1, len(messages) - self.rounds.over_selection)
        if own_exchange:
            self._unbilled += [(server_round, message) for message in messages]
        return messages

    def bill_own_exchange(self, server_round: int, replies: Iterable[Message]) -> list[Message]:
        """Bill an exchange that the caller has made by itself, and return its replies.

        Orders that a grid has sent have an id; those that the caller left out have none, and cost nothing.

        Args:
            server_round: number of the round.
            replies: the replies.
        """
        for number, message in self._unbilled:
            if message.metadata.message_id:
                self.accounting.bill(number, message.metadata.dst_node_id, "down", message)
        self._unbilled = []
        replies = list(replies)
        for reply in replies:
            self.accounting.bill(server_round, reply.metadata.src_node_id, "up", reply)
        return replies

    def take(
        self, server_round: int, replies: Iterable[Message] | None, *, publish: bool = True
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step the model by the mean of this round's valid updates; refuse the other replies one by one.

        Args:
            server_round: number of the round.
            replies: replies to its orders; None: there were no orders.
            publish: whether the step makes a new version of the held model; False: the caller completes the step
                (`GlobalModel.publish_version`), and there is neither fusion nor a new mask.

        Returns:
            The model after the step, None where there was none; and the round's metrics, None where there were no
            orders.
        """
        stepper, refusals = self._stepper, self.accounting.refusals
        self._intact = self.journaled and self.started and self.model.checksum() == self._recorded
        if replies is None:
            self.metrics = None
            if self.started:
                stepper.begin(server_round)
            return None, None
        first_refusal, schedule = len(refusals), self.rounds.schedule
        limit = schedule.max_staleness if schedule else None
        for reply in replies:
            upload = self.orders.verify(reply, self._examples, self.model, server_round, limit)
            if upload:
                self._uploads.append(upload)
        uploads = sorted(self._uploads, key=lambda upload: upload.node)  # a fixed order of the sum; one upload a node
        self._uploads = []
        counted = self._add_up(server_round, uploads)
        answered = {upload.node for upload in uploads} | {refusal.node for refusal in refusals[first_refusal:]}
        self._close_orders(server_round, answered)
        if len(counted) < self.rounds.min_replies:
            detail = f"{len(counted)} replies, {self.rounds.min_replies} are needed for a step"
            for upload in counted:
                self.accounting.refuse(server_round, upload.node, "too few", detail)
            counted = []
            stepper.drop()
        if counted:
            stepper.step(server_round, publish=publish)
            for upload in counted:
                self.orders.accept(upload)
                if self.on_accepted:
                    self.on_accepted(server_round, upload.node, upload.payload)
        if not self.journaled:
            stepper.updates = []  # the payloads go
        self.metrics = self._metrics(counted, refusals[first_refusal:])
        return (self.model.arrays if counted else None), self.metrics

    def _add_up(self, server_round: int, uploads: list[Upload]) -> list[Upload]:
        """Add the updates to the mean and the votes to the ballot; return the uploads that can be decoded."""
        schedule, counted = self.rounds.schedule, []
        self._stepper.begin(server_round)
        for upload in uploads:
            weight = upload.weight * (schedule.discount(upload.staleness) if schedule else 1.0)
            sent = SentUpdate(upload.payload, upload.buffers, upload.download, upload.version, upload.node)
            try:
                update = self._stepper.add(WeighedUpdate(sent, weight, upload.vote))
            except PayloadError as error:
                reason = "too large" if isinstance(error, ValuesTooLarge) else "undecodable"
                self.accounting.refuse(server_round, upload.node, reason, f"{type(error).__name__}: {error}")
                continue
            except Exception as error:  # whatever a client has sent costs this client, and nobody else
                self.accounting.refuse_unexpected(server_round, upload.node, error)
                continue
            self.accounting.count_entries(update, self.model.layout)
            counted.append(upload)
        return counted

    def _close_orders(self, server_round: int, answered: set[int]) -> None:
        """Refuse late replies; with a buffer, orders of nodes at work stay open."""
        tickets, at_work = self.orders.tickets, self.under_way.nodes()  # nobody, without a buffer
        for node in sorted(tickets.open.keys() - answered - at_work):
            self.accounting.refuse(server_round, node, "late", "no reply before the order was closed")
        tickets.open = {node: order for node, order in tickets.open.items() if node in at_work}

    def _metrics(self, counted: list[Upload], refused: list[Refusal]) -> MetricRecord:
        """Return the clients' metrics, with the numbers of replies that counted and that did not."""
        record = MetricRecord()
        if counted:
            contents = [upload.content for upload in counted]
            record = metrics.averaged(self._format.train_metrics, contents, self._format.weighted_by_key)
        staleness = [upload.staleness for upload in counted] if self.rounds.schedule else []
        metrics.count_replies(record, len(counted), [refusal.reason for refusal in refused], staleness)
        return record

    def summary(self, server_round: int, evaluation: MetricRecord | None, seconds: float) -> RoundSummary:
        """Return the figures of the last round, and log them.

        Args:
            server_round: number of the round.
            evaluation: evaluation of the model after it.
            seconds: duration by the grid's clock.
        """
        summary = self.accounting.summary(
            server_round, self.model.published, self.metrics, evaluation, self._first_refusal, seconds
        )
        masks = self.model.masks
        summary.mask_version = masks.version
        summary.density = dynamic_sparsity.density(masks.mask, self.model.layout)
        return summary

    def density_by_layer(self) -> list[tuple[str, int, float]]:
        """Return for each parameter its name, its size and the mean number of its entries in an accepted update.

        Empty before the first round.
        """
        return self.accounting.density_by_layer(self.model.layout) if self.started else []

    # ---- evaluation on nodes ---------------------------------------------------------------------------------------

    def evaluate(self, current: Round, messages: list[Message]) -> Iterator[Message]:
        """Send messages that ask for an evaluation, and return an iterator over the replies.

        Args:
            current: the round.
            messages: those of `open_evaluation`.
        """
        return self._exchange(current, messages, MessageType.EVALUATE, UnderWay(late=self.under_way.late))

    def open_evaluation(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid, *, own_exchange: bool = False
    ) -> list[Message]:
        """Sample nodes that evaluate the model on their own data, and return the messages to them.

        Args:
            server_round: number of the round.
            arrays: the model.
            config: the application's configuration for the nodes.
            grid: grid of the nodes.
            own_exchange: whether the caller sends the messages by itself (`open_orders`).
        """
        if self.sampling.fraction_evaluate == 0.0:
            return []
        self.adopt(arrays)
        nodes = self._sampler.for_evaluation(grid, self.sampling, server_round)
        messages = [self.orders.evaluate(node, server_round, config, self.model) for node in nodes]
        if own_exchange:
            self._unbilled += [(server_round, message) for message in messages]
        return messages

    def take_evaluation(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the metrics of the valid replies; None where there are none.

        Args:
            server_round: number of the round.
            replies: replies to the messages of `open_evaluation`.
        """
        contents = []
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            node = reply.metadata.src_node_id
            if reply.has_error():
                self.accounting.refuse(server_round, node, "evaluation", records.reason_of(reply))
                continue
            try:
                self.orders.evaluated(reply.content, node, self.model)
                self._examples(reply.content)
            except Exception as error:  # most likely a MessageError; whatever it is, it costs this client
                self.accounting.refuse(server_round, node, "evaluation", str(error) or type(error).__name__)
                continue
            contents.append(reply.content)
        average, key = self._format.evaluate_metrics, self._format.weighted_by_key
        return metrics.averaged(average, contents, key) if contents else None

    # ---- messages --------------------------------------------------------------------------------------------------

    def _refill(self, server_round: int, at_work: int, config: ConfigRecord, grid: Grid) -> list[Message]:
        """Open tickets for nodes that had none in this round, until enough nodes are at work."""
        nodes = self._sampler.for_training(
            grid, self.sampling, self.orders.tickets.issued, self.rounds.over_selection - at_work
        )
        vote = self._settings.masks.vote_request(server_round)
        return [self.orders.train(node, server_round, config, self.model, vote) for node in nodes]

    def _exchange(self, current: Round, messages: list[Message], kind: str, under_way: UnderWay) -> Iterator[Message]:
        training, server_round = kind == MessageType.TRAIN, current.number
        config = self._config if training else current.config  # a hook may have changed it
        key, arrays = self._format.arrayrecord_key, self.model.arrays
        known = {id(arrays): records.item_size(key, arrays)} if any(key in m.content for m in messages) else {}

        def bill(server_round: int, node: int, direction: Direction, message: Message) -> None:
            self.accounting.bill(server_round, node, direction, message, known)

        def refill(at_work: int) -> list[Message]:
            return self._refill(server_round, at_work, config, current.grid)

        return exchange.exchange(
            current.grid, current.clock, server_round, messages, under_way,
            limit=current.limit, bill=bill, refuse=self.accounting.refuse,
            enough=lambda: training and len(self._uploads) >= self._wanted,
            from_the_beginning=lambda node: self.orders.from_the_beginning(
                node, server_round, kind, config, self.model
            ),
            with_base=lambda reply: self.orders.with_base(reply, server_round, kind, config, self.model),
            refill=refill if training and self.rounds.schedule else None,
        )  # fmt: skip

    def _examples(self, content: RecordDict) -> float:
        return metrics.examples(content, self._format.weighted_by_key, self.rounds.max_examples)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def state(self) -> FederationState:
        """Return the state after a round's step and before the next round's orders."""
        return self.entry()._replace(model=self.model.state())

    def entry(self) -> FederationState:
        """Return the state without the model's."""
        metrics = None if self.metrics is None else dict(self.metrics)
        return FederationState(
            self.name,
            self.seed,
            self._first_refusal,
            metrics,
            self.orders.tickets,
            self.under_way,
            None,
            self.accounting.state(),
        )

    def recorded_step(self, server_round: int) -> StepRecord | None:
        """Return what a journal needs to take a round's step again, and forget it; what it leads to counts as recorded.

        Args:
            server_round: number of the round.

        Returns:
            The record; None: the step cannot be taken again, as the server has trained in it, or somebody has changed
            the model since it was recorded last.
        """
        stepper, self._recorded = self._stepper, self.model.checksum()
        updates, stepper.updates = stepper.updates, []
        return StepRecord(updates, self._recorded) if self._intact and not stepper.trains(server_round) else None

    def redo(self, server_round: int, updates: Sequence[WeighedUpdate], *, publish: bool = True) -> None:
        """Take a round's step again.

        Args:
            server_round: number of the round.
            updates: its updates, from a journal.
            publish: as in `take`.
        """
        self._stepper.redo(server_round, updates, publish=publish)
        self._stepper.updates = []

    def release(self) -> None:
        """Give back the memory of what `restore` brings."""
        self.model.release()

    def restore(self, state: FederationState) -> None:
        """Take up a state; the federation has a model of the same arrays already, with any values.

        Raises:
            CheckpointError: the state is of another federation, seed or model.
        """
        for key, stored, current in (("federation", state.name, self.name), ("seed", state.seed, self.seed)):
            if stored != current:
                raise CheckpointError(
                    f"the checkpoint has {key} {stored!r}, this run has {current!r}; give each federation a folder of"
                    " its own"
                )
        if state.model is not None:
            self.model.restore(state.model)
            self._stepper.renew_mean()
        self._first_refusal = state.first_refusal
        self.metrics = None if state.metrics is None else MetricRecord(state.metrics)
        self.orders.tickets, self.under_way = state.tickets, state.under_way
        self.accounting.restore(state.accounting)
        self._recorded = self.model.checksum() if self.journaled else None

    def give_up_lost(self, server_round: int, *, skipped: bool, grid_goes_on: bool) -> None:
        """Give up what a restart has lost: replies under way and, where checkpoints were damaged, tickets.

        Args:
            server_round: round of the checkpoint.
            skipped: whether newer checkpoints were damaged.
            grid_goes_on: whether the grid still brings the replies under way.
        """
        lost: set[int] = set()
        if not grid_goes_on:  # these replies never come
            lost = {order.node for order in self.under_way.pending.values()}
            self.under_way.pending, self.under_way.late = {}, {}
        # Clients may have seen tickets that this checkpoint does not know.
        if skipped or (self.rounds.schedule and not grid_goes_on):
            self.orders.tickets.issued += TICKETS_APART
        for node in sorted(lost):
            self.accounting.refuse(server_round, node, "restart", "the server was started again before the reply came")
            self.orders.tickets.open.pop(node, None)
