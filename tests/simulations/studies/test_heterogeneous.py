"""The study of unlike students runs, compares students of one size, and writes what it prints."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from fedpress.compression.models.distillation import settings
from fedpress.simulations.studies import heterogeneous
from fedpress.simulations.studies.heterogeneous import Bench, Size, speed, without_data
from fedpress.simulations.tasks.digits import Digits

TINY = Size(train=200, teacher_epochs=2, proxy=40, epochs=2, seeds=2, test=60)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = {name: dataclasses.replace(recipe, steps=2, batch_size=20) for name, recipe in settings.RECIPES.items()}
    monkeypatch.setattr(settings, "RECIPES", recipes)
    parts = {"data-free": (partial(without_data, Digits(model="cnn-bn")), TINY)}
    monkeypatch.setattr(heterogeneous, "PARTS", parts)


@pytest.mark.usefixtures("quick")
def test_a_part_prints_its_rows_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", ["study", "data-free", "--seeds", "1", "--json", str(file)])
    heterogeneous.main()
    found = json.loads(file.read_text())
    assert found["size"] == TINY._replace(seeds=1)._asdict()
    rows = found["rows"]
    assert [row["technique"] for row in rows] == [
        "the teacher",
        "proxy data",
        "uniform noise",
        "deep-inversion",
        "dafl",
        "dfad",
    ]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(rows) and all(row["technique"] in " ".join(printed) for row in rows)
    assert len({row["parameters"] for row in rows[1:]}) == 1 and rows[1]["parameters"] < rows[0]["parameters"] / 12
    assert all(0 <= row["accuracy"] <= 1 and 0 <= row["agreement"] <= 1 and row["seconds"] > 0 for row in rows)


def test_a_technique_is_judged_by_test_data_over_its_seeds() -> None:
    bench = Bench(Digits(), TINY)
    teacher, same, other = bench.rows(
        {"itself": lambda seed: bench.teacher, "constant": lambda seed: _Constant(answer=seed)}
    )
    assert (same.accuracy, same.deviation, same.agreement) == (teacher.accuracy, 0, 1)
    targets = Digits().data().test.targets[:60]
    shares = [float((targets == label).double().mean()) for label in (0, 1)]
    assert other.accuracy == pytest.approx(sum(shares) / 2) and other.deviation == pytest.approx(
        abs(shares[0] - shares[1]) / 2
    )


class _Constant(nn.Module):
    """Always answers the same."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(nn.functional.one_hot(torch.tensor(answer), 10).float())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(inputs), 10)


def test_a_larger_model_is_slower() -> None:
    inputs = torch.rand(64, 256)
    large = nn.Sequential(nn.Linear(256, 4096), nn.ReLU(), nn.Linear(4096, 10))
    assert speed(large, nn.Linear(256, 10), inputs) > 2


@pytest.mark.parametrize("arguments", [[], ["everything"], ["pairs", "--seeds", "many"]])
def test_a_wrong_call_says_how(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["study", *arguments])
    with pytest.raises(SystemExit):
        heterogeneous.main()
    assert "usage: " in capsys.readouterr().err
