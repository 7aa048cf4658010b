"""A device is measured, its figures are saved and read again, and a node's configuration names its tier."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from fedpress.client import probe
from fedpress.client.probe import Probe, ProbeError
from fedpress.client.state import stores


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.fixture(scope="module")
def measured() -> Probe:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "RUNS", 2)
        patch.setattr(probe, "RUN_SECONDS", 1e-4)
        return probe.measure({"own": (small(), torch.zeros(1, 8))})


def test_what_is_measured_is_there_and_possible(measured: Probe) -> None:
    assert measured.cores >= 1 and measured.threads == 1
    assert measured.memory_bytes >= measured.available_bytes >= 0
    assert 0.01 < measured.matrix_gflops < 1e5 and 0.01 < measured.convolution_gflops < 1e5
    assert [one.name for one in measured.models if one.own] == ["own"]
    assert len(measured.models) == 1 + len(probe.references())
    times = {one.name: one.measured_ms for one in measured.models}
    assert 0 < times["mlp of 16"] < times["cnn of 64, 3x3, on 32x32"]
    for one in measured.models:
        assert one.predicted_ms == one.cost.latency_ms(measured.speed)


def test_measuring_leaves_torch_as_it_was() -> None:
    model = small().train()
    threads, generator = torch.get_num_threads(), torch.random.get_rng_state()
    probe.latency_ms(model, torch.zeros(1, 8))
    assert model.training and torch.get_num_threads() == threads
    assert torch.equal(generator, torch.random.get_rng_state())


def saved(folder: Path, measured: Probe, tier: str) -> Path:
    path = folder / "probe.json"
    path.write_text(json.dumps(replace(measured, tier=tier).to_json()), encoding="utf-8")
    return path


def test_a_saved_probe_is_read_again(tmp_path: Path, measured: Probe) -> None:
    assert probe.read(saved(tmp_path, measured, "phone")) == replace(measured, tier="phone")


@pytest.mark.parametrize("content", [None, "", "{}", "[1, 2]", '{"processor": 3}'])
def test_what_is_no_probe_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ProbeError, match="probe.json.*fedpress probe --json"):
        probe.read(path)


def tier(**node_config: Any) -> str:
    return stores.tier(Context(run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config={}))


def test_the_node_configuration_names_the_tier_or_the_file_that_does(tmp_path: Path, measured: Probe) -> None:
    assert tier() == ""
    assert tier(tier="sensor") == "sensor"
    assert tier(probe=str(saved(tmp_path, measured, "phone"))) == "phone"
    assert tier(tier="sensor", probe="nowhere") == "sensor"
    with pytest.raises(ProbeError, match="names no tier; `fedpress probe SCENARIO"):
        tier(probe=str(saved(tmp_path, measured, "")))
    with pytest.raises(ProbeError, match="cannot read nowhere"):
        tier(probe="nowhere")
