"""The figures of a suite: when an accuracy is reached, and what coding costs; cli/test_suites.py has whole tables."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from fedpress.compression.models.task import IGNORED, Examples, Splits, Task
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import plan_masks
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.suites import measures, suite
from fedpress.simulations.tasks.digits import Digits


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


class Few(Task):
    """Six labels, of which four are the same and one is missing."""

    name = "few"

    def model(self) -> nn.Module:
        raise NotImplementedError

    def data(self) -> Splits:
        part = Examples(torch.zeros(7, 1), torch.tensor([2, 2, 0, 2, 1, 2, IGNORED]))
        return Splits(part, part, part, part._replace(targets=torch.zeros(7)))


def test_chance_is_the_share_of_the_most_frequent_label() -> None:
    assert measures.chance(Few(), "validation") == 4 / 6
    assert measures.chance(Few(), "test") is None  # numbers are no labels


def test_methods_that_have_hardly_learned_are_counted(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text("grids: [{scenario: digits, methods: [fp16, stc, dgc], seeds: 1-2}]")
    cells = suite.load(tmp_path / "suite.yaml").cells(folder=tmp_path)
    guessed = measures.chance(Digits(), "test")
    assert guessed is not None and 0.1 < guessed < 0.12
    accuracies = {"fp16": 0.9, "stc": 0.2, "dgc": 0.12}
    runs = pd.DataFrame(
        {
            "task": cell.task, "partition": cell.partition, "method": cell.method, "seed": cell.seed, "rounds": 6,
            "accuracy": accuracies[cell.method],
        }
        for cell in cells
    )  # fmt: skip
    (caution,) = measures.cautions(cells, runs)
    assert caution == (
        f"digits, {cells[0].partition}, after 6 rounds: models of 2 of 3 methods are near chance (12.0% to 20.0%,"
        f" guessing gives {guessed:.1%}): their bytes can be compared, their accuracies cannot"
    )
    assert measures.cautions(cells, runs.assign(accuracy=0.9)) == []
    assert measures.cautions(cells, runs[:0]) == []
