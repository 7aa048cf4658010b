"""The metrics of a run are those of its figures."""

from fedpress.simulations.deploy import monitor
from fedpress.simulations.deploy.run_figures import run_figures
from fedpress.simulations.results.records import ModelInfo, Results, RoundResult, Totals

NOTHING = Totals(up_bytes=0, down_bytes=0, dense_up_bytes=0, dense_down_bytes=0)


def metrics(*rounds: RoundResult, planned: int = 5) -> dict[str, monitor.ServiceFigure]:
    results = Results(
        scenario={}, seed=1, status="running", rounds=list(rounds), totals=NOTHING, seconds=12.5,
        model=ModelInfo(parameters=1, sha256=""), accuracy=None, phases={"train": 3.0, "send": 1.0},
    )  # fmt: skip
    return {figure.name: figure for figure in run_figures(results, planned)}


def a_round(number: int, accuracy: float | None, **reasons: int) -> RoundResult:
    return RoundResult(
        round=number, accuracy=accuracy, loss=accuracy, up_bytes=10 * number, down_bytes=100, replies=2,
        refused=sum(reasons.values()), reasons=reasons,
    )  # fmt: skip


def test_sums_are_over_the_rounds_and_accuracy_is_the_last_that_was_measured() -> None:
    found = metrics(a_round(1, 0.25, late=1), a_round(2, 0.5, late=1, error=2), a_round(3, None))
    assert found["accuracy"].values == found["loss"].values == {(): 0.5}
    assert (found["round"].values, found["rounds"].values) == ({(): 3}, {(): 5})
    assert found["refused"].values == {("late",): 2, ("error",): 2} and found["replies"].values == {(): 6}
    assert found["bytes"].values == {("up",): 60, ("down",): 300}
    assert found["phase_seconds"].values == {("train",): 3.0, ("send",): 1.0}
    assert {name for name, figure in found.items() if figure.total} == {
        "phase_seconds", "replies", "refused", "bytes", "lost_states",
    }  # fmt: skip


def test_before_the_first_round_there_is_no_accuracy() -> None:
    found = metrics()
    assert found["accuracy"].values == {} and found["bytes"].values == {("up",): 0, ("down",): 0}
