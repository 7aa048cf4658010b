"""Accounting of a run: bytes, messages, refusals, lost states, and the entries of updates by layer."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from logging import DEBUG, INFO, WARNING
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore import log
from numpy.typing import NDArray

from fedpress.compression.ledger import Direction, Ledger
from fedpress.compression.messages import orders, records
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.update import Sparse, Update
from fedpress.server.rounds.metrics import REPLIES, STALENESS

UNANSWERED = frozenset({"late", "unreachable", "restart"})
"""Reasons of refusals for which no client has answered."""


class Refusal(NamedTuple):
    """A reply that did not count, and why."""

    round: int
    node: int
    reason: str  # one of a few words, for counting
    detail: str


@dataclass
class RoundSummary:
    """Figures of one round."""

    round: int
    arrays: ArrayRecord  # the model after the round: held, or the mean of held models with `averaging`
    replies: int = 0  # those that counted
    refusals: list[Refusal] = field(default_factory=list)
    up_bytes: int = 0
    down_bytes: int = 0
    seconds: float = 0.0  # by the grid's clock, which is virtual in simulations
    train: MetricRecord | None = None
    evaluation: MetricRecord | None = None  # from `evaluate_fn`
    staleness: float | None = None  # of the replies that counted, in steps of the model, mean; None: no buffer
    max_staleness: int | None = None
    tiers: dict[str, "RoundSummary"] = field(default_factory=dict)  # of tiers that train; the figures here are of all
    mask_version: int = 0  # after the round; 0: there is no mask
    density: float = 1.0  # fraction of the weights that the mask keeps

    @property
    def reasons(self) -> dict[str, int]:
        """Return the number of refusals by reason."""
        return dict(Counter(refusal.reason for refusal in self.refusals))


class AccountingState(NamedTuple):
    """State of an `Accounting`.

    Attributes:
        ledger: columns of the ledger by name.
        refusals: refusals in the order in which they happened.
        lost_states: number of answers from clients that had lost their state.
        messages: number of messages for training, by direction.
        entries: sum of the entries of accepted updates, by parameter, int64 (P,); empty before the first.
        updates: number of accepted updates.
        evaluations: number of messages for evaluation, by direction.
        changed: whether an accepted update has changed the parameter, bool (P,); empty before the first.
    """

    ledger: dict[str, NDArray[Any]]
    refusals: list[Refusal]
    lost_states: int
    messages: dict[str, int]
    entries: NDArray[np.int64]
    updates: int
    evaluations: dict[str, int]
    changed: NDArray[np.bool_]


class DenseBytes(NamedTuple):
    """Bytes of the same messages with all trained parameters and buffers in full, as a dense method sends them."""

    up: int
    down: int


class DenseSizes(NamedTuple):
    """Bytes of one dense reply and one dense order, and of the arrays in either."""

    reply: int
    order: int
    arrays: int


class Accounting:
    """Counters over all rounds of one model.

    Attributes:
        ledger: bytes of every message's serialized content.
        refusals: refusals in the order in which they happened; the list is never replaced.
        lost_states: number of answers from clients that had lost their state.
        messages: number of messages for training, by direction; an order that had to be sent again counts once.
        evaluations: number of messages for evaluation, by direction.
    """

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.refusals: list[Refusal] = []
        self.lost_states = 0
        self.messages = {"up": 0, "down": 0}
        self.evaluations = {"up": 0, "down": 0}
        self._changed: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._dense: dict[tuple[str, ...], DenseSizes] = {}  # by names of arrays
        self._entries: NDArray[np.int64] = np.zeros(0, np.int64)
        self._updates = 0

    def bill(
        self, server_round: int, node: int, direction: Direction, message: Message, known: dict[int, int] | None = None
    ) -> None:
        """Enter the serialized content of a message in the ledger.

        Args:
            server_round: round that the message belongs to.
            node: node that sends or gets it.
            direction: "up" to the server, "down" from it.
            message: the message.
            known: bytes of records already measured, by `id(record)`.
        """
        counts = {"train": self.messages, "evaluate": self.evaluations}
        count = counts.get(message.metadata.message_type.partition(".")[0])
        if count is not None:
            if direction == "up" and _asks_again(message):
                count["down"] -= 1  # the order comes again, which a dense method would not send
            else:
                count[direction] += 1
        for kind, size in records.sizes(message, known).items():
            self.ledger.record(server_round, node, direction, kind, size)

    def refuse(self, server_round: int, node: int, reason: str, detail: str) -> None:
        """Enter a reply that does not count, and log it; of a long detail the beginning, with nothing but printables.

        Args:
            server_round: round of the reply.
            node: node that sent it, or did not.
            reason: one of a few words, for counting.
            detail: the particulars, for the log.
        """
        detail = records.excerpt(detail)
        self.refusals.append(Refusal(server_round, node, reason, detail))
        log(WARNING, "round %d: reply of node %d refused (%s): %s", server_round, node, reason, detail)

    def refuse_unexpected(self, server_round: int, node: int, error: Exception) -> None:
        """Refuse a reply whose handling raised an error that nobody expects, and log where.

        Args:
            server_round: round of the reply.
            node: node that sent it.
            error: what was raised.
        """
        log(DEBUG, "round %d: the reply of node %d raised this", server_round, node, exc_info=error)
        self.refuse(server_round, node, "malformed", f"{type(error).__name__}: {error}")

    def count_entries(self, update: Update, layout: Layout) -> None:
        """Count the entries of an update in each parameter.

        Args:
            update: an accepted update.
            layout: layout of the model.
        """
        within = np.searchsorted(update.positions, layout.offsets) if isinstance(update, Sparse) else layout.offsets
        if not self._updates:
            self._entries = np.zeros(len(layout.parameters), np.int64)
            self._changed = np.zeros(len(layout.parameters), np.bool_)
        self._entries += np.diff(within)
        if isinstance(update, Sparse):
            self._changed |= np.diff(within) > 0
        elif not self._changed.all():
            vector = update.dense()
            for index in np.flatnonzero(~self._changed):
                self._changed[index] = vector[layout.offsets[index] : layout.offsets[index + 1]].any()
        self._updates += 1

    def trained(self, layout: Layout) -> list[str]:
        """Return the names of the parameters that an update has changed so far; all of them before the first update.

        A parameter that no client ever changes is not trained, whatever the layout says: a frozen base in an app that
        sends its whole model.

        Args:
            layout: layout of the model.
        """
        if not self._updates:
            return [spec.name for spec in layout.parameters]
        return [spec.name for spec, changed in zip(layout.parameters, self._changed, strict=True) if changed]

    def dense_bytes(self, arrays: ArrayRecord, layout: Layout) -> DenseBytes:
        """Return what a dense method would have sent in place of the messages so far.

        Args:
            arrays: arrays of the model.
            layout: layout of the model.
        """
        names = (*self.trained(layout), *(spec.name for spec in layout.buffers))
        if names not in self._dense:
            self._dense[names] = dense_sizes(arrays, names)
        reply, order, _ = self._dense[names]
        metrics = self.ledger.total(direction="up", kind="evaluate")
        return DenseBytes(
            reply * self.messages["up"] + metrics, order * (self.messages["down"] + self.evaluations["down"])
        )

    def density_by_layer(self, layout: Layout) -> list[tuple[str, int, float]]:
        """Return for each parameter its name, its size and the mean number of its entries in an accepted update."""
        entries = self._entries / self._updates if self._updates else np.zeros(len(layout.parameters))
        return [(spec.name, spec.size, float(mean)) for spec, mean in zip(layout.parameters, entries, strict=True)]

    def summary(
        self,
        server_round: int,
        arrays: ArrayRecord,
        metrics: MetricRecord | None,
        evaluation: MetricRecord | None,
        first_refusal: int,
        seconds: float,
    ) -> RoundSummary:
        """Return the figures of a round, and log them.

        Args:
            server_round: number of the round.
            arrays: the held model after it.
            metrics: metrics of `aggregate_train`; None: there were no orders.
            evaluation: metrics of the held model.
            first_refusal: index of the round's first refusal.
            seconds: duration by the grid's clock.
        """
        summary = RoundSummary(
            round=server_round,
            arrays=arrays,
            replies=int(metrics[REPLIES]) if metrics else 0,  # type: ignore[arg-type]
            refusals=self.refusals[first_refusal:],
            up_bytes=self.ledger.total(direction="up", round=server_round),
            down_bytes=self.ledger.total(direction="down", round=server_round),
            seconds=seconds,
            train=metrics,
            evaluation=evaluation,
            staleness=metrics.get(f"{STALENESS}-mean") if metrics else None,  # type: ignore[arg-type]
            max_staleness=metrics.get(f"{STALENESS}-max") if metrics else None,  # type: ignore[arg-type]
        )
        log(
            INFO,
            "round %d: %d replies, %d refused, %d bytes up, %d bytes down",
            server_round, summary.replies, len(summary.refusals), summary.up_bytes, summary.down_bytes,
        )  # fmt: skip
        return summary

    def state(self) -> AccountingState:
        """Return the counters."""
        return AccountingState(
            self.ledger.arrays(), self.refusals, self.lost_states, self.messages, self._entries, self._updates,
            self.evaluations, self._changed,
        )  # fmt: skip

    def restore(self, state: AccountingState) -> None:
        """Take up a state."""
        self.ledger.replace(state.ledger)
        self.refusals[:] = state.refusals
        self.lost_states, self.messages = state.lost_states, state.messages
        self._entries, self._updates = state.entries, state.updates
        self.evaluations, self._changed = state.evaluations, state.changed


def dense_sizes(arrays: ArrayRecord, names: Collection[str]) -> DenseSizes:
    """Return the bytes of a dense reply and of a dense order, as plain Flower sends them, and of their arrays.

    Args:
        arrays: arrays of the model.
        names: names of those that a dense method sends: what is trained, tied tensors once, and the buffers.
    """
    sent = records.of_arrays((name, array) for name, array in arrays.items() if name in names)
    metrics = MetricRecord({"num-examples": 100, "train-loss": 1.0})
    reply = RecordDict({"arrays": sent, "metrics": metrics})
    order = RecordDict({"arrays": sent, "config": ConfigRecord({"server-round": 1})})
    data = sum(len(array.data) for array in sent.values())
    return DenseSizes(records.content_size(reply), records.content_size(order), data)


def _asks_again(message: Message) -> bool:
    answer = None if message.has_error() else message.content.config_records.get(orders.ANSWER)
    return answer is not None and (orders.NEEDS_MODEL in answer or orders.NEEDS_BASE in answer)
