"""`fedpress bench paired`: comparison of two scenarios on the same seeds.

Both runs of a seed share data split, initial weights and sampling, so that their difference varies far less than either
accuracy; its mean is reported with Student's 95 % interval.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from fedpress.compression.errors import FedpressError
from fedpress.simulations.report import confidence
from fedpress.simulations.results.records import Results
from fedpress.simulations.runs import runner
from fedpress.simulations.scenario.scenario import Scenario


class PairedError(FedpressError, ValueError):
    """The two scenarios cannot be compared."""


class Pair(NamedTuple):
    """The two runs of a seed.

    Attributes:
        seed: The seed.
        accuracy, baseline_accuracy: Fractions, means over the last ten rounds.
        up_bytes, baseline_up_bytes: Bytes of all messages up.
        both_bytes, baseline_both_bytes: Bytes of all messages up and down.
    """

    seed: int
    accuracy: float
    baseline_accuracy: float
    up_bytes: int
    baseline_up_bytes: int
    both_bytes: int
    baseline_both_bytes: int

    @property
    def difference(self) -> float:
        """Return the accuracy minus the baseline's."""
        return self.accuracy - self.baseline_accuracy


class Comparison(NamedTuple):
    """All pairs of two scenarios, and their means."""

    scenario: str
    baseline: str
    pairs: list[Pair]

    @property
    def difference(self) -> float:
        """Return the mean difference of accuracy."""
        return mean(pair.difference for pair in self.pairs)

    @property
    def half_width(self) -> float:
        """Return half the width of the 95 % interval of the mean difference; infinite for one seed."""
        return confidence.half_width([pair.difference for pair in self.pairs])

    @property
    def up_ratio(self) -> float:
        """Return the baseline's bytes up over the scenario's, over all seeds."""
        return sum(pair.baseline_up_bytes for pair in self.pairs) / sum(pair.up_bytes for pair in self.pairs)

    @property
    def both_ratio(self) -> float:
        """Return the same for bytes up and down together."""
        return sum(pair.baseline_both_bytes for pair in self.pairs) / sum(pair.both_bytes for pair in self.pairs)


def run(
    scenario: Scenario,
    baseline: Scenario,
    seeds: Sequence[int],
    on_pair: Callable[[Pair], None] | None = None,
) -> Comparison:
    """Run both scenarios with every seed, under one name (random numbers depend on it), without students.

    Args:
        scenario: The scenario to judge.
        baseline: The scenario to compare it with.
        seeds: Seeds of the runs.
        on_pair: Called with each pair when it is complete.

    Raises:
        PairedError: There are no seeds, or the two differ in task, clients, rounds, partition or sampling.
    """
    if not seeds:
        raise PairedError("expected at least one seed, and got none")
    for key in ("task", "clients", "rounds", "partition", "sampling"):
        ours, theirs = getattr(scenario, key), getattr(baseline, key)
        if ours != theirs:
            raise PairedError(f"{key} differs ({ours} and {theirs}); a pair may differ only in how it learns and sends")
    pairs = []
    for seed in seeds:
        ours, theirs = results(scenario, seed), results(baseline.model_copy(update={"name": scenario.name}), seed)
        assert ours.accuracy is not None and theirs.accuracy is not None  # the last ten rounds are always evaluated
        pair = Pair(
            seed,
            ours.accuracy,
            theirs.accuracy,
            ours.totals.up_bytes,
            theirs.totals.up_bytes,
            ours.totals.both_bytes,
            theirs.totals.both_bytes,
        )
        pairs.append(pair)
        if on_pair:
            on_pair(pair)
    return Comparison(scenario.name, baseline.name, pairs)


def results(scenario: Scenario, seed: int) -> Results:
    """Run a scenario in a temporary folder, without students; only the last ten rounds are evaluated.

    Args:
        scenario: The scenario.
        seed: Seed of the run.
    """
    alone = scenario.model_copy(
        update={
            "seed": seed,
            "students": scenario.students.model_copy(update={"tiers": ()}),
            "evaluation": scenario.evaluation.model_copy(update={"every": scenario.rounds}),
        }
    )
    with tempfile.TemporaryDirectory(prefix="fedpress-paired-") as folder:
        return runner.simulate(alone, Path(folder))
