"""`fedpress bench paired`: one scenario against another, on the same seeds.

Both share each seed's data split, initial weights and sampling, so the difference by seed varies far less than
either accuracy; its mean is given with Student's 95 % interval.
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
    """One seed's two runs. Accuracies are fractions: the mean of the last ten rounds' held models."""

    seed: int
    accuracy: float
    baseline_accuracy: float
    up_bytes: int
    baseline_up_bytes: int
    both_bytes: int  # up and down
    baseline_both_bytes: int

    @property
    def difference(self) -> float:
        """Return the accuracy above the baseline's."""
        return self.accuracy - self.baseline_accuracy


class Comparison(NamedTuple):
    """All pairs, and what they say together."""

    scenario: str
    baseline: str
    pairs: list[Pair]

    @property
    def difference(self) -> float:
        """Return the mean accuracy above the baseline's."""
        return mean(pair.difference for pair in self.pairs)

    @property
    def half_width(self) -> float:
        """Return half the width of the 95 % interval of the mean difference; infinite for one seed."""
        return confidence.half_width([pair.difference for pair in self.pairs])

    @property
    def up_ratio(self) -> float:
        """Return how many times fewer bytes went up, over all seeds."""
        return sum(pair.baseline_up_bytes for pair in self.pairs) / sum(pair.up_bytes for pair in self.pairs)

    @property
    def both_ratio(self) -> float:
        """Return the same for both directions together."""
        return sum(pair.baseline_both_bytes for pair in self.pairs) / sum(pair.both_bytes for pair in self.pairs)


def run(
    scenario: Scenario,
    baseline: Scenario,
    seeds: Sequence[int],
    on_pair: Callable[[Pair], None] | None = None,
) -> Comparison:
    """Run both scenarios with every seed, under one name (it goes into what is drawn); students are left out.

    Args:
        scenario: the one to judge.
        baseline: what it is held against.
        seeds: given to both.
        on_pair: told of each pair when it is there.

    Raises:
        PairedError: no seeds, or the two differ in task, clients, partition or rounds, so that they are no pair.
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
    """Run a scenario with a seed, without students and with the last ten rounds evaluated; its folder is not kept."""
    alone = scenario.model_copy(
        update={
            "seed": seed,
            "students": scenario.students.model_copy(update={"tiers": ()}),
            "evaluation": scenario.evaluation.model_copy(update={"every": scenario.rounds}),
        }
    )
    with tempfile.TemporaryDirectory(prefix="fedpress-paired-") as folder:
        return runner.simulate(alone, Path(folder))
