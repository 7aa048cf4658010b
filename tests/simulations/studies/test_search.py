"""The study of the search runs and says what it should."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedpress.compression.models.students.settings import Search
from fedpress.simulations.studies import search
from fedpress.simulations.studies.distillation import train
from fedpress.simulations.studies.search import SETUPS, SearchSetup
from fedpress.simulations.tasks.digits import Digits


def test_each_budget_has_a_pruned_and_a_searched_student() -> None:
    task = Digits()
    teacher = train(task, task.data().train, 2)
    rows = list(search.study(task, teacher, SearchSetup(2, (10_000,), 2), Search(candidates=3, finalists=2), seed=1))
    assert [row.how for row in rows] == ["pruned", "auto"]
    assert all(0 < row.bundle_bytes <= 10_000 and row.seconds > 0 for row in rows)
    assert not rows[0].candidates and sum(one.chosen for one in rows[1].candidates) == 1


def test_scores_are_set_beside_the_number_of_parameters() -> None:
    task = Digits()
    found = search.scores(task, train(task, task.data().train, 1), 10_000, count=4, epochs=1, seed=1)
    assert [row.score for row in found] == ["parameters", "naswot", "synflow", "gradient_norm", "agreement"]
    assert all(-1 <= row.loss <= 1 for row in found)
    # After so little training all students may guess the same class: their accuracies have no order.
    assert search.rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.1, 0.1])) == 0
    assert search.rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.3, 0.2])) == pytest.approx(0.5)


def test_the_command_writes_figures_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SETUPS, "digits", SearchSetup(1, (10_000,), 1))
    monkeypatch.setattr(search, "Search", lambda: Search(candidates=3, finalists=2))
    search.main(["digits", "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg")])
    assert [row["how"] for row in json.loads((tmp_path / "a.json").read_text())] == ["pruned", "auto"]
    assert "bytes of the bundle" in (tmp_path / "a.svg").read_text()
    assert "bundle_bytes" in capsys.readouterr().out
