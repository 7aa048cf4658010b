"""`TieredFed`: groups of clients that train models of different sizes in one run.

It holds the federation of the global model and one for each tier, with a name, tickets, versions, optimizer and
accounting of its own. A round sends the orders of all of them at once and takes their steps one after the other. The
models learn from each other either by distillation in some rounds (`teaching`), or by the mean of the weights that they
share in every round (`sliced`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from logging import ERROR, INFO, WARNING
from typing import Any, NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log
from torch import nn

from fedpress.compression import seeds
from fedpress.compression.errors import FedpressError
from fedpress.compression.messages import records
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.distillation.teachers import LAST
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.tensors.layout import Vector
from fedpress.server.fusion import heterofl
from fedpress.server.fusion.mutual_distillation import teach
from fedpress.server.fusion.settings import Teaching
from fedpress.server.rounds import exchange
from fedpress.server.rounds.accounting import RoundSummary
from fedpress.server.rounds.federation import Federation, Round
from fedpress.server.rounds.orders import unguessable
from fedpress.server.rounds.sampling import PartOfGrid
from fedpress.server.rounds.stepper import WeighedUpdate
from fedpress.server.strategies.sparse_fed import SparseFed

ANSWER_SECONDS = 60.0
"""Limit of the wait for a node to name its tier, in seconds; it is asked again in the next round."""


class TierError(FedpressError, ValueError):
    """The settings of tiers contradict each other."""


class TrainingTier(NamedTuple):
    """A class of client devices that trains a model of its own.

    Attributes:
        name: name that its nodes report.
        federation: federation of its nodes, with a name of its own.
        model: instance of its architecture; holds the initial weights, later those loaded last.
    """

    name: str
    federation: Federation
    model: nn.Module


class Membership(NamedTuple):
    """State of a `TieredFed` besides its federations: the tier of each node.

    Attributes:
        round: the last round.
        tier_of: name of each node's tier; empty: it trains the global model.
    """

    round: int
    tier_of: dict[int, str]


class TieredFed(SparseFed):
    """Strategy for clients of several sizes: a global model and a model for each tier.

    Args:
        tiers: tiers that train; nodes of no tier train the global model.
        model: instance of the global model's architecture.
        proxy: inputs of the distillation, (N, ...).
        teaching: settings of the distillation between the models; None: there is none.
        sliced: whether, instead, each tier's model is the leading part of every layer of the global one, and each
            weight the mean over the models that have it (HeteroFL).
        class_axis: axis of the models' outputs along which the classes are, for the distillation.
        options: arguments of `SparseFed`, for the global model; `fraction_train=0`: no client trains it.

    Raises:
        TierError: the settings contradict each other.
    """

    def __init__(
        self,
        tiers: Sequence[TrainingTier],
        model: nn.Module,
        proxy: Inputs,
        teaching: Teaching | None = None,
        *,
        sliced: bool = False,
        class_axis: int = LAST,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.training_tiers = tuple(tiers)
        names = [tier.name for tier in tiers]
        federations = {self.federation.name, *(tier.federation.name for tier in tiers)}
        if not names or "" in names or len(set(names)) < len(names) or len(federations) <= len(names):
            raise TierError(f"tiers {names}: expected at least one, each with a name and a federation of its own")
        if any(federation.rounds.schedule for federation in self.federations.values()):
            raise TierError("tiers that train have synchronous rounds only; leave `schedule` out")
        if sliced and teaching:
            raise TierError("models that are slices of one another are not taught; leave `teaching` out")
        if teaching and model_inputs.count(proxy) == 0:
            raise TierError("tiers teach each other on proxy data, got 0 inputs: does the task hold out a proxy part?")
        self._global = model
        self._proxy = proxy
        self._teaching = teaching if teaching and teaching.every else None
        self._sliced = sliced
        self._class_axis = class_axis
        self._tier_of: dict[int, str] = {}  # node -> name of its tier, empty: it trains the global model
        self._silent: set[int] = set()  # nodes that named no tier in this round
        self._round = 0
        self._replies: dict[str, Iterator[Message] | None] = {}  # to each tier's orders
        self.companions["tiers"] = self

    def summary(self) -> None:
        """Log the settings of the rounds, and the models that are trained."""
        super().summary()
        trained = self.federation.sampling.fraction_train > 0
        log(INFO, "\t    The global model: %s", "trained by clients" if trained else "taught by the tiers only")
        for name, federation, _ in self.training_tiers:
            share = federation.sampling.fraction_train
            log(INFO, "\t    Tier %s: %.2f of its nodes, federation %r", name, share, federation.name)

    @property
    def federations(self) -> dict[str, Federation]:
        """Federation of every model by name; the global model's name is empty."""
        return {"": self.federation, **{tier.name: tier.federation for tier in self.training_tiers}}

    def nodes(self, grid: Grid, tier: str) -> list[int]:
        """Return the nodes that train a tier's model, in order, after new nodes have named their tier.

        Args:
            grid: grid with all nodes.
            tier: name of the tier; empty: the global model.
        """
        connected = sorted(grid.get_node_ids())
        unknown = [node for node in connected if node not in self._tier_of and node not in self._silent]
        self._tier_of.update(self._ask_for_tiers(grid, unknown))
        return [node for node in connected if self._tier_of.get(node) == tier]

    def _ask_for_tiers(self, grid: Grid, nodes: list[int]) -> dict[int, str]:
        messages = {
            node: Message(
                RecordDict({"tier": ConfigRecord()}),
                dst_node_id=node,
                message_type="query.tier",
                group_id=unguessable(),
            )
            for node in nodes
        }
        answers = exchange.ask(grid, list(messages.values()), ANSWER_SECONDS)
        tiers, accounts = {}, self.accounts
        for node, message in messages.items():
            answer = answers[node]
            record = answer.content.config_records.get("tier") if answer.content else None
            name = record.get("name") if record else None
            if isinstance(name, str) and name in accounts:
                tiers[node] = name
            else:
                self._silent.add(node)
                why = answer.error or records.excerpt(repr(name))
                log(WARNING, "node %d names no tier of this run (%s), and takes no part in the round", node, why)
            accounting = accounts[tiers.get(node, "")]
            accounting.bill(self._round, node, "down", message)
            if answer.reply:
                accounting.bill(self._round, node, "up", answer.reply)
        return tiers

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample nodes that train the global model, to evaluate it.

        Args:
            server_round: number of the round.
            arrays: the model.
            config: the application's configuration for the nodes.
            grid: grid of the nodes.
        """
        return super().configure_evaluate(server_round, arrays, config, self._part(grid, ""))

    # ---- a round ---------------------------------------------------------------------------------------------------

    def _ask(self, current: Round, arrays: ArrayRecord) -> Iterator[Message] | None:
        self._round, self._silent, grid = current.number, set(), current.grid
        self.nodes(grid, "")  # all tiers are known before any order is sent
        replies = super()._ask(current._replace(grid=self._part(grid, "")), arrays)
        for name, federation, _ in self.training_tiers:
            part = current._replace(grid=self._part(grid, name))
            orders = federation.open_orders(part.number, federation.model.arrays, part.config, part.grid)
            self._replies[name] = federation.ask(part, orders)
        return replies

    def _take(
        self, server_round: int, replies: Iterator[Message] | None
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        before = self.model.master.copy() if self._sliced else None
        stepped, metrics = self.federation.take(server_round, replies, publish=not self._sliced)
        for name, federation, _ in self.training_tiers:
            federation.take(server_round, self._replies.pop(name), publish=not self._sliced)
        if before is not None:
            self._share(before)
        elif self._teaching and self._teaches(server_round):
            self._teach(server_round, self._teaching)
        else:
            return stepped, metrics
        return self.model.arrays, metrics

    def _teaches(self, server_round: int) -> bool:
        return self._teaching is not None and server_round % self._teaching.every == 0

    def _teach(self, server_round: int, teaching: Teaching) -> None:
        """Let the models learn from each other, as one more step of each."""
        log(INFO, "round %d: the ensemble teaches the global model, and that the tiers", server_round)
        federations = list(self.federations.values())
        starts = [federation.model.published for federation in federations]
        models = [self._global, *(tier.model for tier in self.training_tiers)]
        for model, start in zip(models, starts, strict=True):
            model.load_state_dict(start.to_torch_state_dict())
        whole = self.federation
        try:
            taught = teach(
                models[0], models[1:], self._proxy, teaching, trained=whole.sampling.fraction_train > 0,
                seed=seeds.derive(whole.name, whole.seed, server_round, "teach"), class_axis=self._class_axis,
            )  # fmt: skip
        except FedpressError as error:
            log(ERROR, "round %d: the models are not taught: %s", server_round, error)
            return
        if not all(bool(torch.isfinite(value).all()) for model in taught for value in model.state_dict().values()):
            log(ERROR, "round %d: the models are not taught: what they learn is not finite", server_round)
            return
        for federation, start, model in zip(federations, starts, taught, strict=True):
            federation.model.apply_server_update(start, ArrayRecord(model.state_dict()), teaching.downlink)

    def _share(self, before: Vector) -> None:
        """Complete a step of sliced models: each weight becomes the mean over the models that have it.

        Args:
            before: the global model's master before the step, float32 (n,).
        """
        parts = [
            heterofl.ModelSlice(
                heterofl.positions(federation.model.layout, self.model.layout),
                federation.model.master,
                federation.taken_weight,
            )
            for federation in self.federations.values()
        ]
        mean = heterofl.mean(before, parts)
        for federation, part in zip(self.federations.values(), parts, strict=True):
            federation.model.master[:] = mean[part.positions]
            federation.model.publish_version()

    def _summary(self, server_round: int, evaluation: MetricRecord | None, seconds: float) -> RoundSummary:
        whole = super()._summary(server_round, evaluation, seconds)
        for name, federation, _ in self.training_tiers:
            part = federation.summary(server_round, None, seconds)
            whole.tiers[name] = part
            whole.replies += part.replies
            whole.refusals += part.refusals
            whole.up_bytes += part.up_bytes
            whole.down_bytes += part.down_bytes
        return whole

    def _part(self, grid: Grid, tier: str) -> Grid:
        return PartOfGrid(grid, lambda: self.nodes(grid, tier))

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _adopt(self, arrays: ArrayRecord) -> None:
        super()._adopt(arrays)
        for tier in self.training_tiers:
            tier.federation.adopt(ArrayRecord(tier.model.state_dict()))

    def _redoable(self, server_round: int) -> bool:
        return super()._redoable(server_round) and not self._teaches(server_round)

    def _redo(self, server_round: int, updates: Mapping[str, Sequence[WeighedUpdate]]) -> None:
        before = self.model.master.copy() if self._sliced else None
        for name, federation in self.federations.items():
            federation.redo(server_round, updates[name], publish=not self._sliced)
        if before is not None:
            self._share(before)

    def state(self) -> Membership:
        """Return the tier of each node; the federations are parts of their own."""
        return Membership(self._round, self._tier_of)

    def restore(self, state: Membership) -> None:
        """Take up a state."""
        self._round, self._tier_of = state.round, state.tier_of
