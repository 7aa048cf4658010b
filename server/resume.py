"""What `SparseFed.start` needs to go on in the middle: the step that was taken last, and the metrics so far."""

from typing import NamedTuple

from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from fedpress.server.checkpoint import State, pairs

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
