"""The study of techniques: one student, one technique at a time."""

import json
from pathlib import Path

import pytest
import torch

from fedpress.compression.models.distillation.settings import Distillation
from fedpress.simulations.scenario import scenario
from fedpress.simulations.studies import distillation, techniques
from fedpress.simulations.studies.distillation import SETUPS, DistillationSetup
from fedpress.simulations.tasks.digits import Digits


def test_techniques_are_compared_on_one_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = DistillationSetup(2, 8_000, {"default": Distillation(epochs=1)}, small=4_000)
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


@pytest.mark.long
def test_client_models_of_a_real_run_teach() -> None:
    lab = techniques.Lab(Digits(), Digits().model(), 4_000, Distillation(epochs=2))
    changes = ("students={tiers: []}", "rounds=2", "clients=4", "sampling.clients_per_round=2", "workers=1")
    rows = list(techniques.with_clients(lab, "clients", scenario.load("digits", changes), seeds=1))
    assert len({row.accuracy for row in rows}) > 1 and len(rows) == 8
    assert rows[0].technique == "global model" and rows[1].technique == "global model, fused each round"
    assert rows[0].accuracy != rows[1].accuracy
