"""A run as Python shows it, from a folder that was made by hand; tests/simulations/test_api.py has real ones."""

from pathlib import Path

import pytest

from fedpress.compression.ledger import Ledger
from fedpress.simulations.report.run_result import RunResult
from fedpress.simulations.results.records import (
    LayerDensity,
    ModelInfo,
    Results,
    RoundResult,
    StudentResult,
    TierRound,
    Totals,
)
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError

PHONE = TierRound(accuracy=0.25, loss=1.0, up_bytes=1, down_bytes=2, replies=1)


def saved(folder: Path, *rounds: RoundResult, **changes: object) -> RunResult:
    results = Results(
        scenario={"name": "digits", "rounds": 2}, seed=1, status="finished", rounds=list(rounds), accuracy=0.5,
        totals=Totals(up_bytes=1, down_bytes=2, dense_up_bytes=3, dense_down_bytes=4), seconds=1.0,
        model=ModelInfo(parameters=10, sha256="ab" * 32),
    )  # fmt: skip
    RunFolder.create(folder).save_results(results.model_copy(update=changes))
    return RunResult(folder)


def a_round(number: int) -> RoundResult:
    return RoundResult(
        round=number, accuracy=0.5, loss=1.0, up_bytes=1, down_bytes=2, replies=1, refused=0, tiers={"phone": PHONE}
    )


def test_frames_have_their_columns_without_a_row(tmp_path: Path) -> None:
    empty = saved(tmp_path / "run")
    for frame in (empty.rounds, empty.tiers, empty.students, empty.layers, empty.ledger):
        assert frame.empty and len(frame.columns) > 0
    assert list(empty.ledger.columns) == ["round", "node", "direction", "kind", "bytes"]
    assert "<svg" not in empty._repr_html_() and "not evaluated" not in repr(empty)


def test_frames_hold_each_record(tmp_path: Path) -> None:
    student = StudentResult(
        tier="<b>phone", version=1, parameters=5, bundle_bytes=6, accuracy=0.5, teacher_accuracy=0.5,
        student_accuracy=0.5, quantized_accuracy=0.5, sha256="cd" * 32,
    )  # fmt: skip
    layers = [LayerDensity(name="0.weight", size=10, sent=1)]
    result = saved(tmp_path / "run", a_round(1), a_round(2), students=[student], layers=layers)
    ledger = Ledger()
    ledger.record(1, 0, "up", "update", 7)
    ledger.save(RunFolder(result.folder).ledger)
    assert list(result.rounds.index) == [1, 2] and result.rounds["accuracy"].tolist() == [0.5, 0.5]
    assert result.tiers[["round", "tier", "accuracy"]].values.tolist() == [[1, "phone", 0.25], [2, "phone", 0.25]]
    assert result.students["parameters"].tolist() == [5] and result.layers.loc["0.weight", "size"] == 10
    assert result.ledger["bytes"].tolist() == [7]
    html = result._repr_html_()
    assert html.count("<svg") == 2 and "&lt;b&gt;phone" in html and "<b>phone" not in html


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="there is no run folder"):
        RunResult(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        saved(tmp_path / "run").model  # noqa: B018
