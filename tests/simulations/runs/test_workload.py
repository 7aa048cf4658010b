"""What the user gives is version 0, on the server and at every client; and a worker reads its clients' parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from safetensors.torch import save_file

from fedpress.compression import seeds
from fedpress.compression.messages import records
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.task import evaluate
from fedpress.compression.tensors.layout import Layout
from fedpress.server.model.global_model import GlobalModel
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import plan_strategy
from fedpress.simulations.runs.initial_weights import InitialWeightsError
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario import scenario as scenarios

GIVEN = "tests.apps.given_models:Given"


def given(kind: str = "tagger", *more: str) -> Workload:
    """Return the work of a scenario with a model of that kind."""
    return Workload(scenarios.load("digits", [f"task={{name: '{GIVEN}', kind: {kind}}}", "students.tiers=[]", *more]))


def test_a_saved_part_is_the_drawn_one_and_nothing_is_drawn_again(tmp_path):
    scenario = scenarios.load("digits", ["clients=12"])
    server = Workload(scenario, tmp_path)
    server.save_parts(RunFolder(tmp_path))
    worker = Workload(scenario, tmp_path)
    assert all(np.array_equal(worker.part(client), server.parts[client]) for client in range(12))
    assert len(worker.examples(3).targets) == len(server.parts[3])
    assert "parts" not in vars(worker)


def test_without_a_run_folder_the_parts_are_drawn(tmp_path):
    scenario = scenarios.load("digits", ["clients=12"])
    assert np.array_equal(Workload(scenario).part(5), Workload(scenario, tmp_path).parts[5])


@pytest.mark.parametrize("kind", ["tagger", "fitted", "half", "numpy"])
def test_the_initial_model_is_what_the_task_returns_bit_for_bit(kind: str) -> None:
    work = given(kind)
    with reproducible(seeds.derive(work.federation, work.scenario.seed, "model")):
        expected = work.task.model().state_dict()
    found, client = work.fresh_model().state_dict(), given(kind).initial()
    assert client is not None and list(found) == list(expected) == list(client)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        assert np.array_equal(client[name], tensor.numpy())
    other = given(kind, "seed=2").fresh_model().state_dict()
    assert any(not torch.equal(other[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", ["tagger", "fitted", "half"])
def test_clients_hold_the_initial_model_to_a_step_of_the_grid_and_without_a_downlink_exactly(kind: str) -> None:
    work = given(kind)
    model = work.fresh_model()
    arrays = ArrayRecord(model.state_dict())
    exact = GlobalModel(arrays, work.layout, plan_strategy.optimizer(work), None)
    held = GlobalModel(arrays, work.layout, plan_strategy.optimizer(work), plan_strategy.downlink(work))
    layout = Layout.of(model)
    trained = {spec.name for spec in layout.parameters} | {alias for alias, _ in layout.tied}
    for name, array in records.to_numpy(arrays).items():
        assert np.array_equal(records.to_numpy(exact.arrays)[name], array)
        found = records.to_numpy(held.arrays)[name]
        if name not in trained:  # buffers and frozen parameters are held as they are
            assert np.array_equal(found, array)
        else:
            precision = 2.0**-10 if array.dtype == np.float16 else 2.0**-20
            assert np.abs(found.astype(np.float64) - array).max() <= precision * np.abs(array).max()


def test_a_model_that_was_trained_before_is_as_good_as_it_was() -> None:
    work = given("fitted")
    accuracy = evaluate(work.fresh_model(), work.task, work.task.data().test).accuracy
    assert accuracy > 0.85
    half = given("half")
    assert evaluate(half.fresh_model(), half.task, half.task.data().test).accuracy == pytest.approx(accuracy, abs=0.02)


def test_a_file_of_initial_weights_is_version_0(tmp_path: Path) -> None:
    path = tmp_path / "init.safetensors"
    weights = {name: tensor + 1 for name, tensor in given("fitted").fresh_model().state_dict().items()}
    save_file(weights, path)
    work = given("fitted", f"init={path}")
    for found in (work.fresh_model().state_dict(), work.initial() or {}):
        assert all(np.array_equal(found[name], tensor) for name, tensor in weights.items())


def test_a_client_without_the_file_has_no_initial_weights_and_an_architecture_all_the_same(tmp_path: Path) -> None:
    client = given("fitted", f"init={tmp_path / 'absent.safetensors'}")
    assert client.initial() is None
    assert list(client.blank_model().state_dict()) == [
        f"{layer}.{name}" for layer in (0, 2, 4) for name in ("weight", "bias")
    ]
    with pytest.raises(InitialWeightsError, match="init: there is no file .*absent"):
        client.fresh_model()  # the server
