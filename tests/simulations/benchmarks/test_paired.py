"""Pairs of runs: what makes none, and what they say together; test_bench_scenarios.py runs one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.simulations.benchmarks import paired
from fedpress.simulations.benchmarks.paired import Comparison, Pair, PairedError
from fedpress.simulations.scenario import scenario

ACCURACY, BYTES = st.floats(0, 1), st.integers(1, 10**9)
PAIR = st.builds(Pair, st.integers(), ACCURACY, ACCURACY, BYTES, BYTES, BYTES, BYTES)


@pytest.mark.parametrize("change", ["rounds=3", "clients=15", "partition.alpha=0.1", "sampling.clients_per_round=3"])
def test_runs_that_differ_in_more_than_learning_and_sending_are_no_pair(change: str) -> None:
    base = scenario.load("digits")
    with pytest.raises(PairedError, match=f"{change.split('.')[0].split('=')[0]} differs"):
        paired.run(base, scenario.load("digits", [change]), [1])
    with pytest.raises(PairedError, match="expected at least one seed"):
        paired.run(base, base, [])


@given(st.lists(PAIR, min_size=1, max_size=6))
def test_a_comparison_and_its_mirror_are_opposite(pairs: list[Pair]) -> None:
    mirrored = [
        Pair(
            pair.seed, pair.baseline_accuracy, pair.accuracy, pair.baseline_up_bytes, pair.up_bytes,
            pair.baseline_both_bytes, pair.both_bytes,
        )
        for pair in pairs
    ]  # fmt: skip
    one, other = Comparison("a", "b", pairs), Comparison("b", "a", mirrored)
    assert one.difference == pytest.approx(-other.difference)
    assert one.up_ratio * other.up_ratio == pytest.approx(1) and one.both_ratio * other.both_ratio == pytest.approx(1)
    assert one.half_width == pytest.approx(other.half_width) or (len(pairs) == 1 and math.isinf(one.half_width))
