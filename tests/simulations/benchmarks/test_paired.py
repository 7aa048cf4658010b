"""Paired runs: they differ in the method alone, and the interval is Student's."""

import pytest

from fedpress.simulations.benchmarks import paired
from fedpress.simulations.benchmarks.paired import PairedError
from fedpress.simulations.scenario import scenario

SHORT = ["rounds=3", "training.epochs=1", "students.tiers=[]"]


@pytest.mark.slow
def test_paired_runs_share_what_the_seed_draws() -> None:
    ours = scenario.load("digits", [*SHORT, "rounds=1"])
    pairs: list[paired.Pair] = []
    same = paired.run(ours, ours.model_copy(update={"name": "other"}), [3], pairs.append)
    assert [(pair.seed, pair.difference) for pair in same.pairs] == [(3, 0.0)]
    assert same.pairs == pairs and same.up_ratio == 1.0


def test_what_is_no_pair_is_refused() -> None:
    ours = scenario.load("digits", SHORT)
    with pytest.raises(PairedError, match="at least one seed"):
        paired.run(ours, ours, [])
    with pytest.raises(PairedError, match="rounds differs"):
        paired.run(ours, scenario.load("digits", ["rounds=7"]), [1])


def test_the_interval_is_students() -> None:
    pairs = [paired.Pair(s, 0.9 + d, 0.9, 10, 1000, 30, 3030) for s, d in enumerate((0.01, 0.02, 0.03))]
    comparison = paired.Comparison("a", "b", pairs)
    assert comparison.difference == pytest.approx(0.02)
    assert comparison.half_width == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-3)
    assert (comparison.up_ratio, comparison.both_ratio) == (100, 101)
    assert paired.Comparison("a", "b", pairs[:1]).half_width == float("inf")
