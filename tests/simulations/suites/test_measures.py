"""The figures of a suite: when an accuracy is reached, and what coding costs; cli/test_suites.py has whole tables."""

from pathlib import Path

import pytest

from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import plan_masks
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.suites import measures, suite


def test_the_model_of_a_mask_is_coded_within_it(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text("grids: [{scenario: digits, methods: [feddst], seeds: 1}]")
    (cell,) = suite.load(tmp_path / "suite.yaml").cells(folder=tmp_path)
    folder = RunFolder(tmp_path)
    plan_masks.schedule(Workload(cell.scenario), folder)  # finds the mask of the run and keeps it there
    found = measures.coding(cell, folder)
    assert found["payload_bytes"] == pytest.approx(0.2 * 4 * 105_226, rel=0.05)
    assert found["encode_ms"] > 0 and found["decode_ms"] > 0


def test_an_accuracy_is_reached_when_the_mean_of_a_few_evaluations_is() -> None:
    curve = [
        {"round": 2 * number, "accuracy": accuracy, "up_bytes": number, "down_bytes": number, "total_bytes": 2 * number}
        for number, accuracy in enumerate([0.1, 0.9, 0.2, 0.7, 0.7, 0.7], 1)
    ]
    assert measures.first_reaching(curve, 0.699) == {"round": 12, "up_bytes": 6, "down_bytes": 6, "total_bytes": 12}
    assert measures.first_reaching(curve, 0.59)["round"] == 8  # 0.9, 0.2, 0.7
    assert measures.first_reaching(curve, 0.71)["round"] is None
