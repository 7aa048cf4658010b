"""Pretrained weights that are agreed by their hash: never sent, never stored; another copy costs its owner alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.apps import frozen_base
from tests.apps.local_grid import LocalGrid

from fedpress.client import app as client_app
from fedpress.compression import safetensors_files
from fedpress.compression.errors import BaseError
from fedpress.compression.messages import records
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import job, plan_strategy
from fedpress.simulations.scenario import scenario as scenarios
from fedpress.simulations.scenario.scenario import Scenario, ScenarioError

CLIENTS, ROUNDS = 3, 3
BASE_BYTES = 4 * (frozen_base.FEATURES + 1) * frozen_base.WIDTH


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder of pretrained weights, in two files."""
    folder = tmp_path / "base"
    folder.mkdir()
    for number, (name, tensor) in enumerate(frozen_base.encoder(3).items()):
        save_file({name: tensor}, folder / f"{number}.safetensors")
    return folder


def load(base: Path, *more: str) -> Scenario:
    task = "task={name: 'tests.apps.frozen_base:FrozenBase'}"
    overrides = [
        task,
        f"clients={CLIENTS}",
        f"sampling.clients_per_round={CLIENTS}",
        "students.tiers=[]",
        "density=0.1",
    ]
    return scenarios.load("digits", [*overrides, f"base={base}", *more])


def run(
    scenario: Scenario, folder: Path, node_configs: Mapping[int, Mapping[str, Any]]
) -> tuple[SparseFed, LocalGrid, dict[str, Any]]:
    """Train for some rounds; the server and each client without a place of its own read the scenario's."""
    config = {"workload": job.REFERENCE, "scenario": scenario.to_json()}
    states = {node: {"state-folder": str(folder / f"state-{node}")} for node in range(1, CLIENTS + 1)}
    nodes = {node: {**states[node], **node_configs.get(node, {})} for node in states}
    grid = LocalGrid(client_app.app, CLIENTS, config, nodes)
    work = job.load(config)
    strategy = plan_strategy.strategy(work, RunFolder(folder))
    initial = records.from_numpy({name: t.numpy() for name, t in work.whole.fresh_model().state_dict().items()})
    arrays = strategy.start(grid, initial_arrays=initial, num_rounds=ROUNDS).arrays
    return strategy, grid, records.to_numpy(arrays)


def test_the_model_begins_with_the_base_and_neither_sends_nor_stores_it(base: Path, tmp_path: Path) -> None:
    strategy, grid, arrays = run(load(base), tmp_path, {})
    for name, tensor in frozen_base.encoder(3).items():
        assert np.array_equal(arrays[f"encoder.{name}"], tensor.numpy())
    assert not strategy.refusals
    assert not any(message.content.array_records for message in grid.sent)
    assert grid.passed["up"] + grid.passed["down"] < BASE_BYTES
    stored = [path for path in tmp_path.glob("state-*/**/*") if path.is_file()]
    assert len(stored) >= CLIENTS and sum(path.stat().st_size for path in stored) < CLIENTS * BASE_BYTES / 2


def test_neither_the_mean_of_models_nor_the_state_of_the_server_holds_it(base: Path, tmp_path: Path) -> None:
    strategy, _, arrays = run(load(base, "server.ema_decay=0.5"), tmp_path, {})
    state = strategy.model.state()
    assert state.average is not None and set(state.average.arrays) == {"head.weight", "head.bias"}
    assert np.array_equal(arrays["encoder.0.weight"], frozen_base.encoder(3)["0.weight"].numpy())


def test_a_client_with_another_base_says_so_before_it_trains_and_costs_itself_alone(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file(frozen_base.encoder(4), other)
    strategy, grid, arrays = run(load(base), tmp_path, {2: {"base-weights": str(other)}})
    assert {refusal.node for refusal in strategy.refusals} == {2} and len(strategy.refusals) == ROUNDS
    detail = strategy.refusals[0].detail
    assert f"base: {other} has SHA-256 {safetensors_files.sha256(other)}" in detail
    assert safetensors_files.sha256(base) in detail and "`base` in the settings of `fedpress client`" in detail
    assert not any(message.content.array_records for message in grid.sent)
    assert not any((tmp_path / "state-2").rglob("*.safetensors"))
    before = job.load({"scenario": load(base).to_json()}).whole.initial()
    assert before is not None and np.any(arrays["head.weight"] != before["head.weight"])


def test_a_copy_elsewhere_is_as_good_and_one_who_has_none_is_sent_it_once(base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    nodes = {1: {"base-weights": str(copy)}, 2: {"base-weights": str(copy)}, 3: {"base-weights": "/absent"}}
    strategy, grid, _ = run(load(base), tmp_path, nodes)
    assert not strategy.refusals
    whole = [message for message in grid.sent if message.content.array_records]
    assert [message.metadata.dst_node_id for message in whole] == [3]
    assert strategy.ledger.total(direction="down", kind="model") > BASE_BYTES


def test_a_server_whose_file_is_not_the_pinned_one_does_not_begin(base: Path) -> None:
    pinned = load(base, f"base={{path: {base}, sha256: {'0' * 64}}}")
    with pytest.raises(BaseError, match=f"has SHA-256 {safetensors_files.sha256(base)}, expected 0000"):
        job.load({"scenario": pinned.to_json()}).whole.fresh_model()
    assert load(base).base.sha256 == safetensors_files.sha256(base)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/absent", "base.path: there is no file /absent"),
        ("{path: null}", "base.path: missing"),
        ("{path: x, sha256: abc}", "base.sha256"),
    ],
)
def test_a_base_that_is_not_there_is_an_error_of_the_scenario(value: str, expected: str) -> None:
    with pytest.raises(ScenarioError, match=expected):
        scenarios.load("digits", [f"base={value}"])


def test_a_base_of_another_model_is_named(tmp_path: Path, base: Path) -> None:
    wide = tmp_path / "wide.safetensors"
    save_file({"0.weight": torch.ones(30, frozen_base.FEATURES)}, wide)
    with pytest.raises(ValueError, match=r"^base: .*'0.weight' has shape \(30, 64\), the model's has \(400, 64\)"):
        job.load({"scenario": load(wide).to_json()}).whole.fresh_model()


def test_init_need_not_hold_what_the_base_does(tmp_path: Path, base: Path) -> None:
    head = tmp_path / "head.safetensors"
    save_file({"head.weight": torch.ones(4, frozen_base.WIDTH), "head.bias": torch.zeros(4)}, head)
    model = job.load({"scenario": load(base, f"init={head}").to_json()}).whole.fresh_model()
    state = model.state_dict()
    assert (state["head.weight"] == 1).all()
    assert torch.equal(
        state["encoder.0.weight"], load_file(base / "1.safetensors").get("0.weight", torch.empty(0))
    ) or (torch.equal(state["encoder.0.weight"], load_file(base / "0.safetensors")["0.weight"]))
