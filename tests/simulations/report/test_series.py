"""Curves of runs: evaluated rounds, bytes so far, means with bands."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.simulations.report import series
from fedpress.simulations.report.series import Point
from fedpress.simulations.results.records import ModelInfo, Results, RoundResult, Totals

ACCURACIES = st.lists(st.none() | st.floats(0, 1), max_size=30)


def results(accuracies: list[float | None]) -> Results:
    return Results(
        scenario={}, seed=1, status="finished", accuracy=None, seconds=1.0, model=ModelInfo(parameters=1, sha256=""),
        totals=Totals(up_bytes=0, down_bytes=0, dense_up_bytes=0, dense_down_bytes=0),
        rounds=[
            RoundResult(
                round=number, accuracy=accuracy, loss=accuracy, up_bytes=1_000, down_bytes=3_000, replies=1, refused=0
            )
            for number, accuracy in enumerate(accuracies, 1)
        ],
    )  # fmt: skip


@given(ACCURACIES)
def test_points_are_the_evaluated_rounds_with_all_bytes_before(accuracies: list[float | None]) -> None:
    assert series.points(results(accuracies)) == [
        Point(number, 1_000 * number, 4_000 * number, accuracy)
        for number, accuracy in enumerate(accuracies, 1)
        if accuracy is not None
    ]


def test_a_running_mean_is_over_ten_rounds_evaluated_or_not() -> None:
    rising: list[float | None] = [0.03 * number for number in range(1, 31)]
    mean = series.running(series.points(results(rising)))
    assert mean[-1].accuracy == pytest.approx(0.03 * 25.5) and mean[0].accuracy == pytest.approx(0.03)
    assert all(after.accuracy > before.accuracy for before, after in pairwise(mean))
    gaps = series.running(series.points(results([0.2, *[None] * 9, 0.6])))
    assert [point.accuracy for point in gaps] == [0.2, 0.6]


def test_of_several_runs_the_rounds_that_all_have_count_with_a_band() -> None:
    runs = [series.points(results([0.1, 0.3, None])), series.points(results([0.3, 0.5, 0.9]))]
    drawn = series.curve("both", runs, "both")
    assert drawn is not None and (drawn.x, drawn.low, drawn.high) == ([4_000, 8_000], [0.1, 0.3], [0.3, 0.5])
    assert drawn.y == pytest.approx([0.2, 0.4])
    assert series.curve("one", runs[:1], "up", smooth=True).smooth  # type: ignore[union-attr]
    assert series.curve("none", [[], runs[0]], "round") is None
    assert series.curve("no bytes", [[Point(1, 0, 0, 0.5)]], "up") is None  # its axis is logarithmic
