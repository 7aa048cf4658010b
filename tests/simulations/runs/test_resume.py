"""Runs that go on: after an interruption, after a crash of a worker, from an older checkpoint, on another engine."""

import json
import os
import signal
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpress.compression.ledger import Ledger
from fedpress.server import app as server
from fedpress.simulations.engines.inline import InlineGrid
from fedpress.simulations.results import start
from fedpress.simulations.results.records import MEASURED, Results, RoundResult
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError
from fedpress.simulations.runs import job, plan, runner
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "sparsity",
    ["{method: feddst, density: 0.2, every: 2, end: 5}", "{method: gradual, density: 0.2, every: 1, end: 4}"],
)
def test_a_run_with_masks_goes_on_to_the_same_end_and_makes_a_student(tmp_path: Path, sparsity: str) -> None:
    more = f"sparsity={sparsity}", "students={tiers: [{name: phone, bundle_bytes: 20000}], distill: {epochs: 1}}"
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


@pytest.mark.slow
def test_a_server_app_on_another_engine_goes_on_by_itself(tmp_path: Path) -> None:
    """As on Flower's own engine, whose clients do not survive: they say that their state is lost, and take part."""
    interrupted(tmp_path / "run", stop=3)
    config = {"workload": job.REFERENCE, "scenario": chosen().to_json(), "out": str(tmp_path / "run")}
    planned = plan.load(config)
    with InlineGrid("fedpress.client.app:app", clients=4, workers=1, run_config=config) as grid:
        server.serve(planned, grid)
    results = RunFolder.open(tmp_path / "run").load_results()
    assert (results.status, [one.replies for one in results.rounds]) == ("finished", [3] * 5)
    assert planned.strategy.federation.accounting.lost_states == 4
    with pytest.raises(RunFolderError, match="not empty"):
        plan.load(config)


def begun(out: Path) -> RunFolder:
    """A run that was killed before its first message."""
    return start.new_folder(chosen(), out)


def test_a_run_that_had_only_begun_can_go_on(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    assert start.unfinished(tmp_path / "run")[1] == chosen()
    older = json.loads(folder.begun.read_text())  # of a version that knew a key less
    del older["students"]["signing_key"]
    folder.begun.write_text(json.dumps(older))
    assert start.unfinished(tmp_path / "run")[1] == chosen()
    folder.begun.unlink()  # killed a moment earlier
    assert start.unfinished(tmp_path / "run")[1] == chosen()
    assert folder.begun.is_file()


def test_what_cannot_go_on_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="there is no run folder"):
        start.unfinished(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match="holds no scenario.yaml"):
        start.unfinished(tmp_path)
    folder = begun(tmp_path / "run")
    text = folder.scenario.read_text()
    folder.scenario.write_text(text.replace("rounds: 5", "rounds: 9").replace("workers: 1", "workers: 2"))
    with pytest.raises(RunFolderError, match=r"has been changed since the run began \(rounds\)"):
        start.unfinished(tmp_path / "run")
    folder.scenario.write_text(text)
    with pytest.raises(RunFolderError, match="unfinished run of another scenario"):
        start.folder_of(chosen("seed=5"), tmp_path / "run")
    assert start.folder_of(chosen("workers=2"), tmp_path / "run").path == folder.path
    folder.checkpoints.mkdir()
    folder.begun.unlink()
    with pytest.raises(RunFolderError, match="was its state removed"):
        start.unfinished(tmp_path / "run")
    assert start.folder_of(chosen(), tmp_path / "new").path == tmp_path / "new"
