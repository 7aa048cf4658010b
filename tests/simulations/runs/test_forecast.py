"""What a run will send, hold and store is foretold from its first messages, and checked against the disk."""

from pathlib import Path

import pytest
import torch

from fedpress.simulations.results.run_folder import RunFolder, RunFolderError
from fedpress.simulations.runs import forecast, launch, runner
from fedpress.simulations.scenario import scenario

SHORT = ["clients=4", "rounds=3", "sampling.clients_per_round=2", "workers=1", "training={steps: 2, epochs: null}"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def chosen(*changes: str) -> scenario.Scenario:
    return scenario.load("digits", [*SHORT, "students.tiers=[]", *changes])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [[], ["downlink=null"], ["encoder=fp16", "downlink=null"]])
def test_bytes_and_disk_are_about_those_of_the_run(tmp_path: Path, changes: list[str]) -> None:
    predicted = launch.only_check(chosen(*changes))
    results = runner.simulate(chosen(*changes), tmp_path / "run", keep_state=True)
    assert predicted.run_up_bytes == pytest.approx(results.totals.up_bytes, rel=0.25)
    assert predicted.run_down_bytes == pytest.approx(results.totals.down_bytes, rel=0.5)
    (model,) = predicted.models
    assert model.dense_up_bytes * 6 == results.totals.dense_up_bytes
    totals = results.totals  # arrays alone: less than whole messages, and of dense ones four bytes a weight and heads
    assert 0 < totals.array_bytes < totals.both_bytes
    heads = 200 * len(results.layers) * 12
    assert 0 < totals.dense_array_bytes - 12 * 4 * results.model.parameters < heads
    assert totals.dense_array_bytes < totals.dense_up_bytes + totals.dense_down_bytes
    assert (model.trained, model.frozen, model.buffers, model.clients) == (105_226, 0, 0, 2)
    used = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert used / 2 < predicted.disk_bytes < 4 * used + 100_000
    states = sum(path.stat().st_size for path in RunFolder(tmp_path / "run").client_states.rglob("*") if path.is_file())
    assert states / 2 < predicted.states_bytes < 2 * states + 10_000


def test_every_model_and_student_is_in_the_tables() -> None:
    tiers = "students.tiers=[{name: phone, parameters: 0.5, trains: true}, {name: watch, bundle_bytes: 9000}]"
    predicted = launch.only_check(
        scenario.load("digits", [*SHORT, tiers, "teaching={global_model: trained, every: 3}"])
    )
    assert [row[0] for row in forecast.model_rows(predicted)] == ["global", "phone"]
    assert [row[0] for row in forecast.bytes_rows(predicted)] == ["global", "phone"]
    bundle = "a bundle of 8 bits a weight"
    assert list(forecast.student_rows(predicted)) == [
        ("phone", "0.5 of the parameters", f"the global model, pruned, trained by its clients, as {bundle}"),
        ("watch", "9,000 bundle bytes", f"the global model, pruned, as {bundle}"),
    ]  # fmt: skip
    assert sum(model.clients for model in predicted.models) == 2


@pytest.mark.parametrize("source", ["memory", "lists"])
def test_inputs_by_name_and_stored_ones_are_foretold_as_tensors_are(source: str) -> None:
    task = f"task={{name: 'tests.apps.texts:Texts', source: {source}}}"
    predicted = launch.only_check(scenario.load("digits", [*SHORT, "students.tiers=[]", task]))
    assert predicted.memory_bytes > forecast.WORKER_BYTES and predicted.run_up_bytes > 0


def test_frozen_parameters_and_buffers_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "from torch import nn\nfrom fedpress.simulations.tasks.digits import Digits\n"
        "class Frozen(Digits):\n"
        "    def model(self):\n"
        "        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))\n"
        "        model[1].requires_grad_(False)\n"
        "        return model\n"
    )
    (tmp_path / "scenario.yaml").write_text(
        "task: task:Frozen\nclients: 4\nrounds: 1\nsampling: {clients_per_round: 2}\n"
    )
    (model,) = launch.only_check(scenario.load(tmp_path)).models
    assert (model.trained, model.frozen, model.buffers) == (16 + 90, 520, 17)


@pytest.mark.parametrize("downlink", ["{density: 0.01}", "null"])
def test_what_is_frozen_is_not_sent_again_and_moments_are_counted(tmp_path: Path, downlink: str) -> None:
    part = ["trainable=['8.*']", f"downlink={downlink}", "training.optimizer=adamw"]
    kept = [*part, "training.optimizer_state=keep"]
    (whole,), (reset,), (keep,) = (
        launch.only_check(chosen("students.tiers=[]", *more)).models for more in ([f"downlink={downlink}"], part, kept)
    )
    assert reset.trained == 1_930
    assert reset.trained + reset.frozen == whole.trained
    assert reset.dense_up_bytes < 4 * reset.trained + 1000 and reset.dense_down_bytes < 4 * reset.trained + 1000
    assert reset.down_bytes < 4 * reset.trained + 1000
    assert (whole.moments_bytes, reset.moments_bytes) == (0, 8 * reset.trained)
    assert keep.held_bytes - reset.held_bytes == 8 * reset.trained


def test_a_disk_without_room_and_a_machine_without_memory_are_noticed(tmp_path: Path) -> None:
    predicted = launch.only_check(chosen())
    assert forecast.check_machine(predicted, tmp_path / "not" / "yet") == []
    too_much = predicted.model_copy(update={"disk_bytes": 10**18})
    with pytest.raises(RunFolderError, match="and the run needs about 1.0 EB"):
        forecast.check_machine(too_much, tmp_path)
    (note,) = forecast.check_machine(predicted.model_copy(update={"memory_bytes": 10**15}), tmp_path)
    assert "fewer workers need less" in note
