"""What would fail in a round is an error before the first one, and leaves nothing behind."""

from pathlib import Path

import pytest
import torch
from tests.apps import checked_task

from fedpress.compression.errors import FedpressError
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import checks, launch, plan
from fedpress.simulations.runs.workload import OtherData, Workload
from fedpress.simulations.scenario import scenario


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checked_task.write(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["task.model=dropout"], "does not answer the same inputs twice alike: does it call functional.dropout"),
        (["task.model=mask", "students.tiers=[{name: phone, parameters: 0.9}]"], "infinity in buffer 'mask'"),
        (["students.tiers=[{name: phone, parameters: 1}]"], "a student within 1 parameters is impossible"),
        (["faults.lost=1.0"], "faults.lost: with a chance of 1"),
        (["network=lora-like", "sampling.deadline=0.01"], "sampling.deadline: got 0.01 s, but no client"),
    ],
)  # fmt: skip
def test_what_would_fail_is_an_error_that_names_the_part(folder: Path, changes: list[str], expected: str) -> None:
    with pytest.raises(FedpressError) as raised:
        checked_task.notes(folder, *changes)
    assert expected in str(raised.value) and raised.value.exit_code == 2


def test_a_scenario_that_can_be_run_has_no_notes(folder: Path) -> None:
    assert checked_task.notes(folder) == []


def test_the_generators_and_modes_of_this_process_stay_as_they_were(folder: Path) -> None:
    torch.manual_seed(3)
    before, debug = torch.get_rng_state(), torch.get_deterministic_debug_mode()
    with pytest.raises(FedpressError):
        checked_task.notes(folder, "task.model=dropout")  # which draws in evaluation mode, too
    assert torch.equal(torch.get_rng_state(), before) and torch.get_deterministic_debug_mode() == debug


def test_no_run_folder_is_left_of_a_run_that_cannot_be(folder: Path) -> None:
    with pytest.raises(checks.CheckError):
        launch.launch(scenario.load(folder, [*checked_task.SHORT, "task.labels=from one"]), out=folder / "run")
    assert not (folder / "run").exists()
    chosen = scenario.load(folder, [*checked_task.SHORT, "task.labels=from one"])
    with pytest.raises(checks.CheckError):  # as the ServerApp of a deployment
        plan.load({"scenario": chosen.to_json(), "out": str(folder / "run")})
    assert not (folder / "run").exists()


def test_a_process_with_other_data_than_the_server_says_so(folder: Path) -> None:
    server = Workload(scenario.load(folder, checked_task.SHORT))
    run = RunFolder.create(folder / "run")
    server.save_parts(run)
    same = Workload(scenario.load(folder, checked_task.SHORT), run.path)
    assert len(same.examples(0).targets) == 10
    other = Workload(scenario.load(folder, [*checked_task.SHORT, "task.data=drawn"]), run.path)
    with pytest.raises(OtherData, match="are not those that the server has"):
        other.examples(0)
