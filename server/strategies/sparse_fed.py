"""`SparseFed`: a Flower strategy that averages encoded updates, in place of `FedAvg`.

Unlike in Flower's own, an invalid reply costs one client the round and no other, no dense vector is made for a client,
and `start` pushes and pulls, so that a round can end at a deadline or once enough replies are in.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log

from fedpress.compression.ledger import Ledger
from fedpress.compression.messages import pieces
from fedpress.compression.messages.base_parts import BaseSource
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.timing import Timer
from fedpress.server.checkpoint.checkpoint_folder import CheckpointFolder
from fedpress.server.checkpoint.state import CheckpointError, Resumable
from fedpress.server.fusion.client_ensemble import ClientModels, Fusion
from fedpress.server.model import optimizers
from fedpress.server.model.global_model import GlobalModel
from fedpress.server.model.mask_schedules import Fixed, MaskSchedule
from fedpress.server.model.optimizers import ServerOptimizer
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds import metrics, orders, threaded_grid
from fedpress.server.rounds.accounting import Accounting, Refusal, RoundSummary
from fedpress.server.rounds.exchange import Clock, WallClock
from fedpress.server.rounds.federation import Federation, Round
from fedpress.server.rounds.outcome import Outcome, RunFailed
from fedpress.server.rounds.settings import MessageFormat, ModelSettings, Rounds, Sampling
from fedpress.server.rounds.stepper import WeighedUpdate
from fedpress.server.strategies import console, drop_in, resume
from fedpress.server.strategies.console import Traffic

LONGEST_PAUSE = 300.0
"""Longest pause, in seconds, before a round that nobody has answered is asked again; the first is 2 seconds."""


class SparseFed(Strategy):
    """Federated averaging of encoded updates: a drop-in for `FedAvg` where clients use `compress(...)`.

    The first block of arguments is FedAvg's, with the same meaning and defaults.

    Args:
        optimizer: optimizer on the mean update; `optimizers.sgd(1.0)` is FedAvg.
        downlink: compression of the download: deltas of a model that clients hold (`versions.Downlink`); None: the
            model goes whole.
        averaging: decay of the mean over the rounds that is evaluated and returned (`average.Average`), in [0, 1);
            0: the newest model is.
        masks: schedule of the mask over the rounds (`mask_schedules`); None: the model has all weights.
        layout: which arrays are parameters and which buffers; by default guessed by the usual names. Clients must
            use the same.
        base: pretrained weights of the model, which clients without a copy of them are sent; None: there are none.
        piece_bytes: bytes of the longest entry of a message, in both directions, that is not cut into pieces.
        rounds: end of a round, and the replies that count; None: it ends with the last reply.
        name: name of the federation; clients keep their state under it.
        seed: seed of the sampling of nodes.
        checkpoints: folder in which every round is made durable, and from which `start` resumes after a kill; a
            `CheckpointFolder` says how much time whole checkpoints may take. None: nothing is. Each federation needs
            a folder of its own.
        clients: receives the client models of each step, and goes into checkpoints; None: they are not needed.
        fusion: distillation of the global model from the client models at the end of a step
            (`client_ensemble.Fusion`).
        on_round: called by `start` with each round's summary.
        on_accepted: called with round, node and payload of each reply that counted, in the order of the nodes.

    Attributes:
        federation: the global model and the nodes that train it.
        checkpoints: the folder.
        companions: other parts of the run that go into its checkpoints, by name. A grid that can, goes in by itself.
        timer: seconds by phase: `orders`, `replies` (waiting for them), `step`, `checkpoint`,
            `evaluation`, `report` (with what `on_round` does, such as making students).

    Raises:
        ValueError: an argument is out of range.
        ArgumentError: an argument is one of another strategy, or of none (a TypeError).
    """

    @drop_in.explain_unknown
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
        layout: Layout | None = None,
        base: BaseSource | None = None,
        piece_bytes: int = pieces.LIMIT,
        rounds: Rounds | None = None,
        name: str = "default",
        seed: int = 0,
        checkpoints: CheckpointFolder | Path | str | None = None,
        clients: ClientModels | None = None,
        fusion: Fusion | None = None,
        on_round: Callable[[RoundSummary], None] | None = None,
        on_accepted: Callable[[int, int, bytes], None] | None = None,
    ) -> None:
        self.federation = Federation(
            name,
            seed,
            sampling=Sampling(
                fraction_train, fraction_evaluate, min_train_nodes, min_evaluate_nodes, min_available_nodes
            ),
            rounds=rounds,
            messages=MessageFormat(
                weighted_by_key,
                arrayrecord_key,
                configrecord_key,
                train_metrics_aggr_fn or metrics.weighted_metrics,
                evaluate_metrics_aggr_fn or metrics.weighted_metrics,
                piece_bytes,
            ),
            model=ModelSettings(optimizer or optimizers.sgd(), downlink, averaging, masks or Fixed(None), layout, base),
            clients=clients,
            fusion=fusion,
            on_accepted=on_accepted,
        )
        self.checkpoints = CheckpointFolder(checkpoints) if isinstance(checkpoints, Path | str) else checkpoints
        self.companions: dict[str, Resumable] = {}
        self.on_round = on_round
        self.timer = Timer()
        self._exchanges = False  # whether `run` is sending the messages of the hooks, and bills them
        self._warned_of = ""

    def __getattr__(self, name: str) -> Any:
        """Refuse methods of Flower's API before messages by name.

        Raises:
            LegacyError: it is one of those (an AttributeError).
            AttributeError: there is no such attribute.
        """
        if name in drop_in.LEGACY:
            raise drop_in.legacy(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # ---- results ---------------------------------------------------------------------------------------------------

    @property
    def model(self) -> GlobalModel:
        """The global model.

        Raises:
            RuntimeError: there is none before `start` or `configure_train`.
        """
        return self.federation.model

    @property
    def ledger(self) -> Ledger:
        """Bytes of every message's serialized content, in the exchange of the global model."""
        return self.federation.accounting.ledger

    @property
    def refusals(self) -> list[Refusal]:
        """Replies that did not count, in the exchange of the global model."""
        return self.federation.accounting.refusals

    @property
    def tiers(self) -> dict[int, str]:
        """Tier of devices by node, for nodes that have reported one with an update."""
        return self.federation.orders.tickets.tiers

    @property
    def federations(self) -> dict[str, Federation]:
        """Federation of every model that this strategy trains, by name; the global model's name is empty."""
        return {"": self.federation}

    @property
    def accounts(self) -> dict[str, Accounting]:
        """Accounting of every model that this strategy trains, by name; the global model's name is empty."""
        return {name: federation.accounting for name, federation in self.federations.items()}

    # ---- Flower's hooks --------------------------------------------------------------------------------------------

    def summary(self) -> None:
        """Log the settings of the rounds."""
        sampling, rounds = self.federation.sampling, self.federation.rounds
        log(INFO, "\t├──> Sampling: fraction %.2f, over-selection %d", sampling.fraction_train, rounds.over_selection)
        log(INFO, "\t├──> A round needs %d replies, deadline %s", rounds.min_replies, rounds.deadline or "none")
        log(INFO, "\t└──> Federation: %r", self.federation.name)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample nodes and open a ticket for each; with a buffer, until enough nodes are at work.

        Args:
            server_round: number of the round.
            arrays: the model of the orders.
            config: the application's configuration for the nodes.
            grid: grid of the nodes.

        Raises:
            WrapperError: the caller is one of Flower's wrappers for differential privacy.
        """
        self._look_for_wrappers()
        return self.federation.open_orders(server_round, arrays, config, grid, own_exchange=not self._exchanges)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step the model by the mean of this round's valid updates; refuse the other replies one by one.

        Args:
            server_round: number of the round.
            replies: replies to its orders.

        Returns:
            The model after the step, None where there was none; and the round's metrics.
        """
        if not self._exchanges:
            replies = self.federation.bill_own_exchange(server_round, replies)
        return self.federation.take(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample nodes that evaluate the model on their own data.

        Args:
            server_round: number of the round.
            arrays: the model.
            config: the application's configuration for the nodes.
            grid: grid of the nodes.
        """
        return self.federation.open_evaluation(server_round, arrays, config, grid, own_exchange=not self._exchanges)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the metrics of the valid replies; None where there are none.

        Args:
            server_round: number of the round.
            replies: replies to the messages of `configure_evaluate`.
        """
        if not self._exchanges:
            replies = self.federation.bill_own_exchange(server_round, replies)
        return self.federation.take_evaluation(server_round, replies)

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

        Where `checkpoints` holds one of this federation, the run resumes from it: its step is not repeated, everything
        after the step is. The result has the metrics of the earlier rounds, too.

        Args:
            grid: grid of the nodes.
            initial_arrays: the initial model.
            num_rounds: number of rounds.
            timeout: seconds after which an order counts as unanswered; a deadline may be sooner.
            train_config: the application's configuration for training; None: an empty one.
            evaluate_config: the same for evaluation on nodes.
            evaluate_fn: evaluates the model on the server, given round and arrays; round 0 is the initial model. None:
                there is no such evaluation.

        Raises:
            LayoutError: the initial arrays do not fit the layout, or none of them can be trained.
            CheckpointError: the checkpoints are of another federation or model, or one cannot be written.
            RunFailed: no reply could be used, or the model is not finite (`rounds.outcome`).
        """
        start = time.monotonic()
        self._look_for_wrappers()
        console.starting(type(self).__name__, num_rounds, initial_arrays, train_config, evaluate_config)
        result = Result(arrays=initial_arrays)
        outcome = Outcome(num_rounds, self.federations)
        replies = refused = 0
        for summary in self.run(grid, result, num_rounds, timeout, train_config, evaluate_config, evaluate_fn):
            if self.on_round:
                with self.timer.of("report"):
                    self.on_round(summary)
            console.round_over(Traffic.of(list(self.federations.values())))
            replies, refused = replies + summary.replies, refused + len(summary.refusals)
            try:
                outcome.after(summary)
            except RunFailed as error:
                likely = next((text for refusal in summary.refusals if (text := drop_in.hint(refusal.detail))), "")
                raise RunFailed(f"{error}\nMost likely {likely}" if likely else str(error)) from None
        trained = self.federation.accounting.trained(self.model.layout)
        untrained = [spec.name for spec in self.model.layout.parameters if spec.name not in trained]
        traffic = Traffic.of(list(self.federations.values()))
        console.finished(result, traffic, time.monotonic() - start, replies, refused, untrained)
        return result

    def run(
        self,
        grid: Grid,
        result: Result,
        num_rounds: int,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        on_silence: Callable[[int, int], None] | None = None,
    ) -> Iterator[RoundSummary]:
        """Run the rounds one after the other, and yield the figures of each; `start` runs this to its end.

        Args:
            grid: grid of the nodes.
            result: holds the initial arrays; gets the metrics as they come, and at the end the model.
            num_rounds: number of rounds.
            timeout: seconds after which an order counts as unanswered; a deadline may be sooner.
            train_config: the application's configuration for training; None: an empty one.
            evaluate_config: the same for evaluation on nodes.
            evaluate_fn: evaluates the model on the server, given round and arrays; round 0 is the initial model. None:
                there is no such evaluation.
            on_silence: called with the round and the number of attempts so far where no node has answered; the round
                is asked again after a pause, since devices may be offline. None: it counts as any other.

        Raises:
            LayoutError: the initial arrays do not fit the layout.
            CheckpointError: the checkpoints are of another federation or model, or one cannot be written.
        """
        self.summary()
        clock: Clock | None = getattr(grid, "clock", None)
        if clock is not None:  # a simulation: all that is drawn comes from the seed
            for federation in self.federations.values():
                federation.draw_tickets_from_seed()
        resumed = self._resume(grid, result)
        arrays = result.arrays
        if resumed is None and evaluate_fn and (first := evaluate_fn(0, arrays)) is not None:
            result.evaluate_metrics_serverapp[0] = first
            log(INFO, "Initial global evaluation results: %s", first)
        if self.federation.started:  # from here on the model as it is held: the caller's copy is of its size, too
            arrays = result.arrays = self.model.arrays
        most = orders.largest_reply(self.model.layout) if self.federation.started else 0
        clock, grid = clock or WallClock(), threaded_grid.patient(grid, most)
        train_config = ConfigRecord() if train_config is None else train_config  # hooks of a subclass may change them
        evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
        deadline = self.federation.rounds.deadline
        limit = timeout if deadline is None else min(timeout, deadline)
        for server_round in range(resumed.round if resumed else 1, num_rounds + 1):
            log(INFO, "")
            log(INFO, "[ROUND %d/%d]", server_round, num_rounds)
            current = Round(server_round, grid, clock, self.timer, train_config, limit)
            step, attempts = resumed if resumed and server_round == resumed.round else None, 0
            while step is None or (on_silence and not self._answered):
                if step is not None and on_silence:
                    attempts += 1
                    on_silence(server_round, attempts)
                    _pause(clock, min(2.0**attempts, LONGEST_PAUSE))
                step = self._take_step(current, arrays, result)
                arrays = result.arrays
            step_end = clock.now()
            self._evaluate_on_nodes(current._replace(config=evaluate_config, limit=timeout), arrays, result)
            with self.timer.of("evaluation"):
                evaluation = evaluate_fn(server_round, self.model.published) if evaluate_fn else None
            if evaluation is not None:
                result.evaluate_metrics_serverapp[server_round] = evaluation
                log(INFO, "Global evaluation")
                log(INFO, "\t└──> MetricRecord: %s", evaluation)
            yield self._summary(server_round, evaluation, step.seconds + (clock.now() - step_end))
        result.arrays = self.model.published

    # ---- a round ---------------------------------------------------------------------------------------------------

    def _take_step(self, current: Round, arrays: ArrayRecord, result: Result) -> resume.TakenStep:
        """Send the orders, take the step with the replies, and write the checkpoint."""
        start = current.clock.now()
        with self.timer.of("orders"):
            replies = self._ask(current, arrays)
        with self.timer.of("step"):
            stepped, train_metrics = self._take(current.number, replies)
        if stepped is not None:
            result.arrays = stepped
        if train_metrics is not None:
            result.train_metrics_clientapp[current.number] = train_metrics
            log(INFO, "\t└──> Aggregated MetricRecord: %s", train_metrics)
        step = resume.TakenStep(current.number, current.clock.now() - start)
        # Durable before any message carries a verdict of this round.
        if self.checkpoints:
            with self.timer.of("checkpoint"):
                parts = self._parts(current.grid)
                redoable = self._redoable(current.number)
                resume.save(self.checkpoints, step, result, self.federations, parts, redoable=redoable)
        return step

    @property
    def _answered(self) -> bool:
        """Whether a node has answered an order of the last round; true where there were none."""
        answered = [federation.answered for federation in self.federations.values()]
        return any(answered) or all(one is None for one in answered)

    def _ask(self, current: Round, arrays: ArrayRecord) -> Iterator[Message] | None:
        # Through Flower's hook, which a subclass may replace.
        with self._exchange():
            messages = list(self.configure_train(current.number, arrays, current.config, current.grid))
        return self.federation.ask(current, messages)

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Let hooks know that this strategy sends and bills the messages itself."""
        before, self._exchanges = self._exchanges, True
        try:
            yield
        finally:
            self._exchanges = before

    def _look_for_wrappers(self) -> None:
        outer = drop_in.refuse_wrappers(self, drop_in.calling_frame())
        if outer != self._warned_of:
            self._warned_of = outer
            log(
                WARNING,
                "%s works inside %s: replies hold encoded updates and no weights, so whatever that one does"
                " with weights in"
                " replies does nothing",
                type(self).__name__, outer,
            )  # fmt: skip

    def _take(
        self, server_round: int, replies: Iterator[Message] | None
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        # Through Flower's hook, which a subclass may replace.
        with self._exchange():
            return (None, None) if replies is None else self.aggregate_train(server_round, replies)

    def _evaluate_on_nodes(self, current: Round, arrays: ArrayRecord, result: Result) -> None:
        with self._exchange():
            messages = list(self.configure_evaluate(current.number, arrays, current.config, current.grid))
            if not messages:
                return
            evaluated = self.aggregate_evaluate(current.number, self.federation.evaluate(current, messages))
        if evaluated is not None:
            result.evaluate_metrics_clientapp[current.number] = evaluated
            log(INFO, "\t└──> Aggregated MetricRecord: %s", evaluated)

    def _summary(self, server_round: int, evaluation: MetricRecord | None, seconds: float) -> RoundSummary:
        return self.federation.summary(server_round, evaluation, seconds)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _parts(self, grid: Grid) -> dict[str, Resumable]:
        """Return the parts of a checkpoint by name."""
        parts: dict[str, Resumable] = {f"federation {name}": each for name, each in self.federations.items()}
        if self.federation.clients is not None:
            parts["clients"] = self.federation.clients
        return {**parts, **self.companions, **({"grid": grid} if isinstance(grid, Resumable) else {})}

    def _adopt(self, arrays: ArrayRecord) -> None:
        """Give every federation its model."""
        self.federation.adopt(arrays)

    def _redoable(self, server_round: int) -> bool:
        """Return whether a round's steps can be taken again from their updates alone: its model needs no checkpoint."""
        return type(self).aggregate_train is SparseFed.aggregate_train

    def _redo(self, server_round: int, updates: Mapping[str, Sequence[WeighedUpdate]]) -> None:
        """Take a round's steps again, with the updates of each federation, by its name."""
        for name, federation in self.federations.items():
            federation.redo(server_round, updates[name])

    def _resume(self, grid: Grid, result: Result) -> resume.TakenStep | None:
        """Go back to the newest checkpoint; without one, take the result's arrays as the model."""
        if self.checkpoints and self.federation.started:
            raise CheckpointError(
                "with checkpoints a strategy runs `start` once; make another strategy, with a folder of its own"
            )
        self._adopt(result.arrays)
        parts, step = self._parts(grid), None
        if self.checkpoints and type(self).aggregate_train is not SparseFed.aggregate_train:
            log(INFO, "%s has an `aggregate_train` of its own: each round has a whole checkpoint", type(self).__name__)
        for federation in self.federations.values():
            federation.journaled = self.checkpoints is not None
        while self.checkpoints and (checkpoint := self.checkpoints.newest()) is not None:
            try:
                step = resume.go_on(checkpoint, result, self.federations, parts, self._redo)
            except resume.OtherModel as error:
                self.checkpoints.give_up(error.start, str(error))
                continue
            for federation in self.federations.values():
                federation.give_up_lost(step.round, skipped=checkpoint.skipped > 0, grid_goes_on="grid" in parts)
            log(INFO, "Resumed after round %d, from the checkpoint of round %d", step.round, checkpoint.round)
            break
        result.arrays = self.model.arrays
        return step


def _pause(clock: Clock, seconds: float) -> None:
    until = clock.now() + seconds
    while clock.now() < until:
        clock.wait(until)
