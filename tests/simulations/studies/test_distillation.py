"""The study behind the default settings runs and judges by held-out data."""

import json
from pathlib import Path

import pytest
import torch

from fedpress.compression.models.distillation.settings import Distillation
from fedpress.simulations.scenario import scenario
from fedpress.simulations.studies import distillation, techniques
from fedpress.simulations.studies.distillation import SETUPS, Setup, variants
from fedpress.simulations.tasks.digits import Digits


def test_more_training_brings_the_student_nearer_to_its_teacher() -> None:
    settings = {"none to speak of": Distillation(epochs=1, learning_rate=1e-9), "some": Distillation(epochs=20)}
    teacher, untaught, taught = rows = list(distillation.study(Digits(), Setup(20, 8_000, settings), seeds=1))
    assert [row.setting for row in rows] == ["teacher", *settings]
    assert teacher.accuracy > 0.85 and taught.agreement > 0.9 > untaught.agreement
    assert taught.accuracy > untaught.accuracy and all(row.seconds > 0 for row in rows)


def test_each_variant_differs_from_the_default_in_one_respect() -> None:
    default, *others = (settings.__dict__ for settings in variants(Distillation()).values())
    assert [sum(default[key] != other[key] for key in default) for other in others] == [1] * len(others)
    assert SETUPS["fashion-mnist"].settings["default"] == Distillation()


@pytest.mark.parametrize("arguments", [[], ["mnist"], ["digits", "more"]])
def test_a_wrong_call_says_how(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        distillation.main(arguments)
    assert "{digits,fashion-mnist}" in capsys.readouterr().err


def test_techniques_are_compared_on_one_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = Setup(2, 8_000, {"default": Distillation(epochs=1)}, small=4_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETUPS, "digits", quick)
        file = tmp_path / "rows.json"
        distillation.main(["digits", "--techniques", "--part", "long tail", "--seeds", "1", "--json", str(file)])
    rows = [techniques.Outcome(**row) for row in json.loads(file.read_text())]
    assert [row.technique for row in rows] == ["teacher", "answers (KL) alone", "reweighted", "resampled"]
    assert rows[0].agreement == 1.0 and len({(row.accuracy, row.agreement) for row in rows}) > 2
    assert capsys.readouterr().out.count("\n") == 5


def test_a_long_tail_has_fewer_and_fewer() -> None:
    proxy = Digits().data().proxy
    counts = torch.bincount(techniques.long_tailed(proxy, 10).targets).tolist()
    assert counts == sorted(counts, reverse=True) and counts[0] == 10 * counts[-1]


@pytest.mark.slow
def test_client_models_of_a_real_run_teach() -> None:
    lab = techniques.Lab(Digits(), Digits().model(), 4_000, Distillation(epochs=2))
    changes = ("students={tiers: []}", "rounds=2", "clients=4", "sampling.clients_per_round=2", "workers=1")
    rows = list(techniques.with_clients(lab, "clients", scenario.load("digits", changes), seeds=1))
    assert len({row.accuracy for row in rows}) > 1 and len(rows) == 8
    assert rows[0].technique == "global model" and rows[1].technique == "global model, fused each round"
    assert rows[0].accuracy != rows[1].accuracy
