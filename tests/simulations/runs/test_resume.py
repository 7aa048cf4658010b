"""Runs that go on: after an interruption, after a crash of a worker, from an older checkpoint, on another engine."""

import os
import resource
import signal
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpress.compression.errors import FedpressError
from fedpress.compression.ledger import Ledger
from fedpress.simulations.results.records import MEASURED, Results, RoundResult
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError
from fedpress.simulations.runs import runner
from fedpress.simulations.runs.observer import Observer
from fedpress.simulations.scenario import scenario
from fedpress.simulations.scenario.scenario import Scenario

SHORT = ["clients=4", "rounds=5", "training.epochs=1", "workers=1", "students.tiers=[]", "sampling.clients_per_round=3"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def chosen(*more: str) -> Scenario:
    return scenario.load("digits", [*SHORT, *more])


class Watch(Observer):
    """Follows a run, and breaks it off."""

    def __init__(self, stop: int = 0, crash: int = 0) -> None:
        self.stop, self.crash = stop, crash
        self.resumed_after: list[int] = []
        self.rounds: list[int] = []
        self.ended = ""

    def on_resume(self, rounds: list[RoundResult]) -> None:
        self.resumed_after = [result.round for result in rounds]

    def on_round(self, result: RoundResult) -> None:
        self.rounds.append(result.round)
        if result.round == self.crash:
            for worker in active_children():
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGKILL)
        if result.round == self.stop:
            raise KeyboardInterrupt

    def on_end(self, results: Results) -> None:
        self.ended = results.status


def figures(results: Results) -> dict[str, Any]:
    return results.model_dump(exclude=MEASURED)


def interrupted(out: Path, *more: str, stop: int = 2, crash: int = 0) -> RunFolder:
    with pytest.raises(KeyboardInterrupt):
        runner.simulate(chosen(*more), out, Watch(stop, crash))
    return RunFolder.open(out)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    expected = runner.simulate(chosen(), tmp_path / "undisturbed")
    assert not RunFolder(tmp_path / "undisturbed").state.exists()
    folder = interrupted(tmp_path / "run")
    assert folder.load_results().status == "interrupted"
    again = Watch(stop=4)
    with pytest.raises(KeyboardInterrupt):
        runner.resume(tmp_path / "run", again)
    # What comes after a step is repeated: the figures of round 2 were cut off.
    assert (again.resumed_after, again.rounds, again.ended) == ([1], [2, 3, 4], "interrupted")
    last = Watch()
    results = runner.resume(tmp_path / "run", last, keep_state=True)
    assert (last.resumed_after, last.rounds, last.ended) == ([1, 2, 3], [4, 5], "finished")
    assert figures(results) == figures(expected)
    assert sorted(Ledger.load(folder.ledger).rows) == sorted(Ledger.load(tmp_path / "undisturbed" / "ledger.csv").rows)
    assert folder.checkpoints.is_dir() and folder.client_states.is_dir()
    with pytest.raises(RunFolderError, match="is finished, nothing is left to do"):
        runner.resume(tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize(
    "sparsity",
    ["{method: feddst, density: 0.2, every: 2, end: 5}", "{method: gradual, density: 0.2, every: 1, end: 4}"],
)
def test_a_run_with_masks_goes_on_to_the_same_end_and_makes_a_student(tmp_path: Path, sparsity: str) -> None:
    more = (
        "checkpoint_budget=0",
        f"sparsity={sparsity}",
        "students={tiers: [{name: phone, bundle_bytes: 20000}], distill: {epochs: 1}}",
    )
    expected = runner.simulate(chosen(*more), tmp_path / "undisturbed")
    assert len(expected.new_masks) >= 3 and expected.rounds[-1].density == pytest.approx(0.2, abs=1e-3)
    assert [student.version for student in expected.students] == [5]
    interrupted(tmp_path / "run", *more, stop=3)
    results = runner.resume(tmp_path / "run")
    assert figures(results) == figures(expected)


@pytest.mark.slow
def test_a_crash_of_the_workers_and_a_damaged_checkpoint_do_not_end_a_run(tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "run", stop=4, crash=2)
    (folder.path / "bundles").mkdir()
    (folder.path / "bundles" / ".half.part").write_bytes(b"what a killed write leaves")
    crashed = folder.load_results().rounds[2]
    assert crashed.reasons.get("error", 0) >= 1 and crashed.replies + crashed.refused == 3
    newest = max(folder.checkpoints.iterdir())
    newest.write_bytes(newest.read_bytes()[:1000])
    watch = Watch()
    results = runner.resume(tmp_path / "run", watch)
    assert (watch.resumed_after, watch.rounds) == ([1, 2], [3, 4, 5])
    assert (results.status, [one.round for one in results.rounds]) == ("finished", [1, 2, 3, 4, 5])
    assert not list(folder.path.rglob("*.part"))
    assert "round-00000004.safetensors.damaged" in folder.log.read_text()
    assert all(one.replies == 3 for one in results.rounds[3:])


class FullDisk(Observer):
    """Lets this process write no file of more than a few bytes after a round, as if the disk were full."""

    def on_round(self, result: RoundResult) -> None:
        if result.round == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.slow
def test_a_disk_that_gets_full_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    expected = runner.simulate(chosen(), tmp_path / "undisturbed")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(FedpressError, match="cannot write the checkpoint .*Make room on the disk"):
            runner.simulate(chosen(), tmp_path / "run", FullDisk())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(RunFolder.open(tmp_path / "run").load_results().rounds) == 2
    assert figures(runner.resume(tmp_path / "run")) == figures(expected)
