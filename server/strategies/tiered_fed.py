"""Tiers that train: groups of clients that train models of different sizes in one federation.

`TieredFed` is the strategy of the global model, and has beside it a `SparseFed` for each tier, with a federation name,
tickets, versions, optimizer and books of its own. A round sends the orders of all of them at once and takes their
steps one after the other. What the models have of each other is either taught (`teaching`), in some rounds, or the
mean of the weights that they share, in every round (`slices`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from logging import INFO, WARNING
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.supercore import log
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression import seeds
from fedpress.compression.errors import FedpressError
from fedpress.compression.tensors.layout import Vector
from fedpress.server.checkpoint.state import CheckpointError, State, pairs
from fedpress.server.fusion import heterofl
from fedpress.server.fusion.mutual_distillation import teach
from fedpress.server.fusion.settings import Teaching
from fedpress.server.model.mask_schedules import Ballot
from fedpress.server.rounds.accounting import Accounting, RoundSummary
from fedpress.server.rounds.exchange import Clock
from fedpress.server.rounds.sampling import PartOfGrid
from fedpress.server.strategies import resume
from fedpress.server.strategies.sparse_fed import SparseFed

ANSWER_SECONDS = 60.0
"""How long a node may take to say whose model it trains; it is asked again in the next round."""


class TierError(FedpressError, ValueError):
    """Tiers that train cannot work together as they are told to."""


class Sliced(SparseFed):
    """A tier's strategy where models are slices of one another: its step is only complete with those of the others."""

    def _step(
        self, mean_update: Vector, buffers: dict[str, NDArray[Any]], server_round: int, ballot: Ballot | None
    ) -> None:
        self.model.move(mean_update, buffers)


class TrainingTier(NamedTuple):
    """A class of client devices that trains a model of its own.

    Attributes:
        name: as its nodes say it.
        strategy: of its rounds; `Sliced` where models are slices of one another. Its federation is its own.
        model: of its architecture; at first with the initial weights, later whatever was loaded last.
    """

    name: str
    strategy: SparseFed
    model: nn.Module


class TieredFed(SparseFed):
    """The strategy of a global model whose clients are of several sizes.

    Args:
        tiers: the others; nodes that are of none of them train the global model.
        model: the global model's architecture.
        proxy: inputs that the models are taught on, (N, ...).
        teaching: when and how they are; None: the models learn apart.
        sliced: instead, each tier's model is the leading part of every layer of the global one, and each weight is the
            mean over those who have it.
        options: as for `SparseFed`, for the global model; `fraction_train=0`: no client trains it.

    Raises:
        TierError: the options ask for what tiers cannot do.
    """

    def __init__(
        self,
        tiers: Sequence[TrainingTier],
        model: nn.Module,
        proxy: Tensor,
        teaching: Teaching | None = None,
        *,
        sliced: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.training_tiers = tuple(tiers)
        names = [tier.name for tier in tiers]
        federations = {self.federation, *(tier.strategy.federation for tier in tiers)}
        if not names or "" in names or len(set(names)) < len(names) or len(federations) <= len(names):
            raise TierError(f"tiers {names}: expected at least one, each with a name and a federation of its own")
        if any(strategy.schedule for strategy in (self, *(tier.strategy for tier in tiers))):
            raise TierError("tiers that train have synchronous rounds only; leave `schedule` out")
        if any(isinstance(tier.strategy, Sliced) != sliced for tier in tiers) or (sliced and teaching):
            raise TierError("where models are slices, all strategies of tiers are `Sliced` and nobody teaches")
        if teaching and len(proxy) == 0:
            raise TierError("tiers teach each other on proxy data, got 0 inputs: does the task hold out a proxy part?")
        for tier in tiers:
            tier.strategy.phases = self.phases
        self._global = model
        self._proxy = proxy
        self._teaching = teaching if teaching and teaching.every else None
        self._sliced = sliced
        self._tier_of: dict[int, str] = {}  # node -> name of its tier, empty: it trains the global model
        self._silent: set[int] = set()  # nodes that did not say it in this round
        self._round = 0
        self._began: dict[str, int] = {}  # index of each tier's first refusal of the round
        self._metrics: dict[str, MetricRecord | None] = {}  # of each tier's round
        self._replies: dict[str, Iterator[Message] | None] = {}

    def summary(self) -> None:
        """Log what this strategy will do, and who trains what."""
        super().summary()
        log(
            INFO,
            "\t    The global model: %s",
            "trained by clients" if self.fraction_train else "taught by the tiers only",
        )
        for name, strategy, _ in self.training_tiers:
            log(
                INFO,
                "\t    Tier %s: %.2f of its nodes, federation %r",
                name,
                strategy.fraction_train,
                strategy.federation,
            )

    @property
    def accounts(self) -> dict[str, Accounting]:
        """The books of the global model, whose name is empty, and of every tier."""
        return {"": self.books, **{tier.name: tier.strategy.books for tier in self.training_tiers}}

    def nodes(self, grid: Grid, tier: str) -> list[int]:
        """Return the nodes that train a tier's model, in order; nodes that are new are asked first.

        Args:
            grid: with all nodes.
            tier: its name; empty: the global model.
        """
        there = sorted(grid.get_node_ids())
        unknown = [node for node in there if node not in self._tier_of and node not in self._silent]
        for node, name in self._asked_for_tiers(grid, unknown).items():
            self._tier_of[node] = name
        return [node for node in there if self._tier_of.get(node) == tier]

    def _asked_for_tiers(self, grid: Grid, nodes: list[int]) -> dict[int, str]:
        messages = {
            node: Message(RecordDict({"tier": ConfigRecord()}), dst_node_id=node, message_type="query.tier")
            for node in nodes
        }
        replies = grid.send_and_receive(list(messages.values()), timeout=ANSWER_SECONDS) if nodes else []
        answers = {reply.metadata.src_node_id: reply for reply in replies}
        found = {}
        for node, message in messages.items():
            reply = answers.get(node)
            record = reply.content.config_records.get("tier") if reply and reply.has_content() else None
            name = record.get("name") if record else None
            if isinstance(name, str) and name in self.accounts:
                found[node] = name
            else:
                self._silent.add(node)
                log(WARNING, "node %d names no tier of this run (%r), and takes no part in the round", node, name)
            books = self.accounts[found.get(node, "")]
            books.bill(self._round, node, "down", message)
            if reply:
                books.bill(self._round, node, "up", reply)
        return found

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample nodes among those that have the global model."""
        return super().configure_evaluate(server_round, arrays, config, PartOfGrid(grid, lambda: self.nodes(grid, "")))

    # ---- a round ---------------------------------------------------------------------------------------------------

    def _ask(
        self, grid: Grid, clock: Clock, server_round: int, arrays: ArrayRecord, config: ConfigRecord, limit: float
    ) -> Iterator[Message] | None:
        self._round, self._silent = server_round, set()
        self.nodes(grid, "")  # nobody's orders wait for what only these answers tell
        own = super()._ask(self._part(grid, ""), clock, server_round, arrays, config, limit)
        for name, strategy, _ in self.training_tiers:
            self._began[name] = len(strategy.refusals)
            self._replies[name] = strategy._ask(
                self._part(grid, name), clock, server_round, strategy.model.arrays, config, limit
            )
        return own

    def _take(
        self, server_round: int, replies: Iterator[Message] | None
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        before = self.model.master.copy() if self._sliced else None
        stepped, metrics = super()._take(server_round, replies)
        for name, strategy, _ in self.training_tiers:
            _, self._metrics[name] = strategy._take(server_round, self._replies.pop(name))
        if before is not None:
            self._share(before, metrics)
        elif self._teaching and server_round % self._teaching.every == 0:
            self._teach(server_round, self._teaching)
        else:
            return stepped, metrics
        return self.model.arrays, metrics

    def _step(
        self, mean_update: Vector, buffers: dict[str, NDArray[Any]], server_round: int, ballot: Ballot | None
    ) -> None:
        if self._sliced:
            self.model.move(mean_update, buffers)
        else:
            super()._step(mean_update, buffers, server_round, ballot)

    def _teach(self, server_round: int, teaching: Teaching) -> None:
        """Let the models learn from each other, as one more step of each."""
        log(INFO, "round %d: the ensemble teaches the global model, and that the tiers", server_round)
        strategies = [self, *(tier.strategy for tier in self.training_tiers)]
        starts = [strategy.model.published for strategy in strategies]
        models = [self._global, *(tier.model for tier in self.training_tiers)]
        for model, start in zip(models, starts, strict=True):
            model.load_state_dict(start.to_torch_state_dict())
        taught = teach(
            models[0], models[1:], self._proxy, teaching, trained=self.fraction_train > 0,
            seed=seeds.derive(self.federation, self.seed, server_round, "teach"),
        )  # fmt: skip
        for strategy, start, model in zip(strategies, starts, taught, strict=True):
            strategy.model.shift(start, ArrayRecord(model.state_dict()), teaching.downlink)

    def _share(self, before: Vector, metrics: MetricRecord | None) -> None:
        """Complete a step of models that are slices: each weight becomes the mean over those who have it."""
        whole, parts = self.model, []
        strategies: list[tuple[SparseFed, MetricRecord | None]] = [
            (self, metrics), *((tier.strategy, self._metrics[tier.name]) for tier in self.training_tiers)
        ]  # fmt: skip
        for strategy, counted in strategies:
            places = heterofl.positions(strategy.model.layout, whole.layout)
            weight = strategy.taken_weight if counted and counted["replies"] else 0.0
            parts.append(heterofl.Part(places, strategy.model.master, weight))
        mean = heterofl.mean(before, parts)
        for (strategy, _), part in zip(strategies, parts, strict=True):
            strategy.model.master[:] = mean[part.positions]
            strategy.model.advance()

    def _summary(
        self, published: ArrayRecord, metrics: MetricRecord | None, evaluation: MetricRecord | None, step: resume.Step
    ) -> RoundSummary:
        whole = super()._summary(published, metrics, evaluation, step)
        for name, strategy, _ in self.training_tiers:
            part = strategy._summary(
                strategy.model.published, self._metrics[name], None, step._replace(first_refusal=self._began[name])
            )
            whole.tiers[name] = part
            whole.replies += part.replies
            whole.refusals += part.refusals
            whole.up_bytes += part.up_bytes
            whole.down_bytes += part.down_bytes
        return whole

    def _part(self, grid: Grid, tier: str) -> Grid:
        return PartOfGrid(grid, lambda: self.nodes(grid, tier))

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def saved(self) -> State:
        """Return all that the rounds of all models depend on."""
        metrics = {name: None if record is None else dict(record) for name, record in self._metrics.items()}
        meta = {"nodes": pairs(self._tier_of), "round": self._round, "began": self._began, "metrics": metrics}
        tiers = State.of(**{tier.name: tier.strategy.saved() for tier in self.training_tiers})
        return State.of(whole=super().saved(), members=State({}, meta), tiers=tiers)

    def restore(self, state: State, arrays: ArrayRecord) -> None:
        """Take up what `saved` returned.

        Raises:
            CheckpointError: the state is of another federation, seed, model or tiers.
        """
        if state.meta.get("tiers", {}).keys() != {tier.name for tier in self.training_tiers}:
            raise CheckpointError(
                f"the checkpoint has the tiers {sorted(state.meta.get('tiers', {}))}, this run has"
                f" {sorted(tier.name for tier in self.training_tiers)}; give each federation a folder of its own"
            )
        super().restore(state.part("whole"), arrays)
        for tier in self.training_tiers:
            tier.strategy.restore(state.part("tiers").part(tier.name), ArrayRecord(tier.model.state_dict()))
        meta = state.part("members").meta
        self._tier_of, self._round, self._began = dict(meta["nodes"]), meta["round"], meta["began"]
        self._metrics = {
            name: None if values is None else MetricRecord(values) for name, values in meta["metrics"].items()
        }

    def _resume(self, grid: Grid, result: Result) -> resume.Step | None:
        step = super()._resume(grid, result)
        if step is None:
            for tier in self.training_tiers:
                tier.strategy._adopt(ArrayRecord(tier.model.state_dict()))
        return step

    def _restarted(self, server_round: int, skipped: bool, grid_goes_on: bool) -> None:
        super()._restarted(server_round, skipped, grid_goes_on)
        for tier in self.training_tiers:
            tier.strategy._restarted(server_round, skipped, grid_goes_on)
