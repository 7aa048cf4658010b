"""Questions to runs beyond their last accuracy: accuracy within a budget, cost to a target, and robustness.

They are the three protocols of J. Geng et al., "EdgeFlowerTune: Evaluating Federated LLM Fine-Tuning Under Realistic
Edge System Constraints", 2026 (arXiv 2605.08636): Quality-under-Budget, Cost-to-Target and Robustness. Costs are bytes
in both directions, rounds, and virtual seconds where a run has a network. Accuracy is everywhere the mean of the last
ten rounds, as in all tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from fedpress.simulations.report import series
from fedpress.simulations.results.records import Results

CONDITIONS: Final = ("clients", "faults", "network", "partition")
"""Keys and sections of a scenario that say under which conditions a method works, not how it works."""
MOST_BUDGETS: Final = 5
"""Budgets that are chosen where none is given."""
ALIKE: Final = 1.1
"""Ratio up to which two budgets are taken for one."""


class Cost(NamedTuple):
    """What a run had cost when it reached an accuracy.

    Attributes:
        rounds: Rounds.
        bytes: Bytes up and down.
        seconds: Virtual seconds; 0: the run has no network.
    """

    rounds: int
    bytes: int
    seconds: float


def accuracy_within(results: Results, budget: float) -> float | None:
    """Return the accuracy of a run when it had spent a budget, a fraction; None: no round was evaluated by then.

    A run that ends earlier has its last accuracy: it leaves the rest unspent.

    Args:
        results: Figures of the run.
        budget: Bytes up and down.
    """
    affordable = [point for point in series.running(series.points(results)) if point.both <= budget]
    return affordable[-1].accuracy if affordable else None


def cost_to(results: Results, target: float) -> Cost | None:
    """Return the cost at the first evaluated round by which a run had reached an accuracy; None: it never did.

    Args:
        results: Figures of the run.
        target: The accuracy, a fraction.
    """
    seconds = {one.round: one.virtual_seconds for one in results.rounds}
    for point in series.running(series.points(results)):
        if point.accuracy >= target:
            return Cost(point.round, point.both, seconds[point.round])
    return None


def budgets(runs: Sequence[Results]) -> list[float]:
    """Return budgets to compare runs at, in bytes: what they have spent in all, each amount once, at most five."""
    chosen: list[float] = []
    for spent in sorted(sum(one.up_bytes + one.down_bytes for one in run.rounds) for run in runs):
        if spent and (not chosen or spent > ALIKE * chosen[-1]):
            chosen.append(float(spent))
    if len(chosen) <= MOST_BUDGETS:
        return chosen
    return [chosen[round(step * (len(chosen) - 1) / (MOST_BUDGETS - 1))] for step in range(MOST_BUDGETS)]


def target(runs: Sequence[Results]) -> float | None:
    """Return the greatest whole percentage that all runs have reached, a fraction; None: there is none above zero."""
    best = [max((point.accuracy for point in series.running(series.points(run))), default=0.0) for run in runs]
    percent = int(100 * min(best, default=0.0) + 1e-9)
    return percent / 100 if percent else None


def alike(settings: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Return which scenarios differ in nothing but the conditions: indices, in their order, two or more together.

    Args:
        settings: Values of each scenario by dotted key.
    """
    together: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, one in enumerate(settings):
        method = tuple(sorted((key, repr(value)) for key, value in one.items() if not is_condition(key)))
        together.setdefault(method, []).append(index)
    return [indices for indices in together.values() if len(indices) > 1]


def is_condition(key: str) -> bool:
    """Return whether a dotted key says under which conditions a method works; the name of a scenario does not count."""
    return key == "name" or key.partition(".")[0] in CONDITIONS
