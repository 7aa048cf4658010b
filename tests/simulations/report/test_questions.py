"""Accuracy within a budget, cost to a target, robustness: laws over any curve."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.simulations.report import questions, series
from fedpress.simulations.results.records import ModelInfo, Results, RoundResult, Totals


def run(*rounds: tuple[float | None, int]) -> Results:
    """A run whose rounds have these accuracies and bytes."""
    return Results(
        scenario={},
        seed=1,
        status="finished",
        rounds=[
            RoundResult(
                round=number, accuracy=accuracy, loss=None, up_bytes=size // 3, down_bytes=size - size // 3, replies=1,
                refused=0, virtual_seconds=2.0 * number,
            )
            for number, (accuracy, size) in enumerate(rounds, 1)
        ],
        totals=Totals(up_bytes=0, down_bytes=0, dense_up_bytes=0, dense_down_bytes=0),
        model=ModelInfo(parameters=1, sha256=""),
        accuracy=None,
        seconds=0.0,
    )  # fmt: skip


curves = st.lists(st.tuples(st.none() | st.floats(0, 1), st.integers(0, 1000)), max_size=30)


@given(curves, st.integers(0, 40_000))
def test_within_a_budget_nothing_dearer_counts(rounds: list[tuple[float | None, int]], budget: int) -> None:
    found = questions.accuracy_within(run(*rounds), budget)
    spent = list(accumulate(size for _, size in rounds))
    affordable = [rounds[index] for index, so_far in enumerate(spent) if so_far <= budget]
    assert found == questions.accuracy_within(run(*affordable), float("inf"))
    assert (found is None) == all(accuracy is None for accuracy, _ in affordable)


@given(curves, st.floats(0, 1))
def test_a_target_costs_what_buys_it_and_less_does_not(rounds: list[tuple[float | None, int]], target: float) -> None:
    results = run(*rounds)
    cost = questions.cost_to(results, target)
    reached = [point for point in series.running(series.points(results)) if point.accuracy >= target]
    assert (cost is None) == (not reached)
    if cost is not None:
        assert cost == (reached[0].round, sum(size for _, size in rounds[: cost.rounds]), 2.0 * cost.rounds)
        assert questions.cost_to(run(*rounds[: cost.rounds - 1]), target) is None


def test_budgets_are_what_runs_spent_each_amount_once() -> None:
    spends = [run((0.5, size)) for size in (1000, 40_000, 1050, 0, 5000)]
    assert questions.budgets(spends) == [1000, 5000, 40_000]
    many = questions.budgets([run((0.5, 2**power)) for power in range(12)])
    assert len(many) == questions.MOST_BUDGETS and (many[0], many[-1]) == (1, 2**11)


def test_the_target_is_reached_by_all() -> None:
    assert questions.target([run((0.2, 1), (0.8, 1)), run((0.431, 1), (0.1, 1))]) == pytest.approx(0.43)
    assert questions.target([run((0.3, 1)), run((None, 1))]) is None
    assert questions.target([]) is None


def test_only_conditions_may_differ() -> None:
    settings = [
        {"name": "a", "density": 0.1, "faults": None},
        {"name": "b", "density": 0.1, "faults.lost": 0.2},
        {"name": "a", "density": 0.2, "faults": None},
        {"name": "a", "density": 0.1, "faults": None, "partition.alpha": 0.1},
    ]
    assert questions.alike(settings) == [[0, 1, 3]]
