"""How `SparseFed.start` goes on in the middle: from the step that was taken last, and all that it depends on."""

from abc import ABC, abstractmethod
from logging import INFO
from typing import NamedTuple

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.supercore import log

from fedpress.server.checkpoint.checkpoint_folder import CheckpointFolder
from fedpress.server.checkpoint.state import CheckpointError, Resumable, State, pairs
from fedpress.server.model.global_model import GlobalModel
from fedpress.server.rounds.accounting import Accounting
from fedpress.server.rounds.aggregate import ReplyMean
from fedpress.server.rounds.exchange import UnderWay
from fedpress.server.rounds.orders import Orders
from fedpress.server.strategies.buffered import Buffered

TICKETS_APART = 1_000_000
"""Added to the tickets where the newest checkpoint was damaged. Clients have answered tickets that the older one knows
nothing of, and would take a ticket with the same number for the same order."""
_METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")


class Step(NamedTuple):
    """The step of a round, taken or not."""

    round: int
    seconds: float  # from the orders to the step, by the grid's clock
    first_refusal: int  # index of this round's first refusal


def saved(result: Result, step: Step) -> State:
    """Return the step and the metrics so far."""
    metrics = {name: [(key, dict(record)) for key, record in pairs(getattr(result, name))] for name in _METRICS}
    return State({}, {"step": step, "metrics": metrics})


def restore(state: State, result: Result) -> Step:
    """Enter the metrics that `saved` returned into the result, and return the step."""
    for name in _METRICS:
        getattr(result, name).update({number: MetricRecord(values) for number, values in state.meta["metrics"][name]})
    return Step(*state.meta["step"])


class Resuming(ABC):
    """The part of `SparseFed` that goes into checkpoints and comes back from them."""

    federation: str
    seed: int
    schedule: Buffered | None
    checkpoints: CheckpointFolder | None
    companions: dict[str, Resumable]
    books: Accounting
    _orders: Orders
    _under_way: UnderWay
    _model: GlobalModel | None
    _mean: ReplyMean

    def saved(self) -> State:
        """Return all that the rounds depend on, after a round's step and before the next round's orders."""
        own = State({}, {"federation": self.federation, "seed": self.seed})
        parts: dict[str, Resumable] = {
            "orders": self._orders,
            "under_way": self._under_way,
            "model": self._held,
            "books": self.books,
        }
        return State.of(own=own, **{name: part.saved() for name, part in parts.items()})

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
        self._held.restore(state.part("model"))
        self._mean = ReplyMean(self._held.layout)
        self._orders.restore(state.part("orders"))
        self._under_way.restore(state.part("under_way"))
        self.books.restore(state.part("books"))

    def _resume(self, grid: Grid, result: Result) -> Step | None:
        """Go back to the newest checkpoint; without one, take the result's arrays as the model."""
        if self.checkpoints and self._model is not None:
            raise CheckpointError(
                "with checkpoints a strategy runs `start` once; make another one, with its own folder"
            )
        found = self.checkpoints.newest() if self.checkpoints else None
        if found is None:
            self._adopt(result.arrays)
            result.arrays = self._held.arrays
            return None
        self.restore(found.state.part("strategy"), result.arrays)
        result.arrays = self._held.arrays
        step = restore(found.state.part("result"), result)
        companions = self._with_grid(grid)
        for name, companion in companions.items():
            companion.restore(found.state.part(name))
        self._restarted(step.round, found.skipped > 0, "grid" in companions)
        log(INFO, "Resumed from the checkpoint of round %d", step.round)
        return step

    def _restarted(self, server_round: int, skipped: bool, grid_goes_on: bool) -> None:
        """Give up what a restart has lost: replies under way, and where checkpoints were damaged, tickets."""
        lost: set[int] = set()
        if not grid_goes_on:  # nobody brings these replies any more
            lost = {order.node for order in self._under_way.pending.values()}
            self._under_way.pending, self._under_way.late = {}, {}
        # Clients may have seen tickets that this checkpoint knows nothing of.
        if skipped or (self.schedule and not grid_goes_on):
            self._orders.tickets += TICKETS_APART
        for node in sorted(lost):
            self.books.refuse(server_round, node, "restart", "the server was started again before the reply came")
            self._orders.open.pop(node, None)

    def _with_grid(self, grid: Grid) -> dict[str, Resumable]:
        return {**self.companions, **({"grid": grid} if isinstance(grid, Resumable) else {})}

    def _save(self, folder: CheckpointFolder, grid: Grid, result: Result, step: Step) -> None:
        parts = {"strategy": self.saved(), "result": saved(result, step)}
        parts |= {name: companion.saved() for name, companion in self._with_grid(grid).items()}
        folder.save(step.round, State.of(**parts))

    @property
    def _held(self) -> GlobalModel:
        assert self._model is not None, "the model comes from `start` or `configure_train`"
        return self._model

    @abstractmethod
    def _adopt(self, arrays: ArrayRecord) -> None:
        """Take the model from outside."""
