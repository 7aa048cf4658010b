"""Metrics of a run for Prometheus, as `fedpress server` serves them."""

from __future__ import annotations

from collections.abc import Iterator

from fedpress.simulations.deploy import monitor
from fedpress.simulations.results.records import Results


def run_figures(results: Results, rounds: int) -> Iterator[monitor.ServiceFigure]:
    """Yield accuracy, bytes, replies and times of a run so far.

    Args:
        results: Figures of the run.
        rounds: Number of rounds planned; 0: not known.
    """
    last = next((r for r in reversed(results.rounds) if r.accuracy is not None), None)
    yield monitor.figure("round", "The last complete round.", len(results.rounds))
    yield monitor.figure("rounds", "Rounds that the run will have.", rounds)
    yield monitor.figure("accuracy", "Of the model that clients hold, a fraction.", last.accuracy if last else None)
    yield monitor.figure("loss", "Of the model that clients hold.", last.loss if last else None)
    yield monitor.figure("run_seconds", "Seconds that the run has taken.", results.seconds)
    phases: dict[tuple[str, ...], float] = {(name,): seconds for name, seconds in results.phases.items()}
    yield monitor.ServiceFigure(
        "phase_seconds", "Seconds of the rounds, by what they went into.", phases, ("phase",), total=True
    )
    yield monitor.figure("replies", "Accepted replies.", sum(r.replies for r in results.rounds), total=True)
    reasons: dict[tuple[str, ...], float] = {}
    for result in results.rounds:
        for reason, count in result.reasons.items():
            reasons[(reason,)] = reasons.get((reason,), 0.0) + count
    yield monitor.ServiceFigure("refused", "Refused replies, by reason.", reasons, ("reason",), total=True)
    sent: dict[tuple[str, ...], float] = {
        ("up",): sum(r.up_bytes for r in results.rounds),
        ("down",): sum(r.down_bytes for r in results.rounds),
    }
    yield monitor.ServiceFigure("bytes", "Bytes of messages in rounds.", sent, ("direction",), total=True)
    yield monitor.figure("lost_states", "Replies that came without a state.", results.lost_states, total=True)
