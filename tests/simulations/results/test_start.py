"""Where a run begins or goes on: a new folder, that of a run that was killed, or a reason why not."""

import json
from pathlib import Path

import pytest

from fedpress.simulations.results import start
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError
from fedpress.simulations.scenario import scenario
from fedpress.simulations.scenario.scenario import Scenario

SHORT = ["clients=4", "rounds=5", "training.epochs=1", "workers=1", "students.tiers=[]", "sampling.clients_per_round=3"]


def chosen(*more: str) -> Scenario:
    return scenario.load("digits", [*SHORT, *more])


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
