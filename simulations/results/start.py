"""Start of a run: a new folder with its scenario, or that of a run that goes on. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from fedpress.compression import files
from fedpress.compression.files import write_atomically
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError
from fedpress.simulations.scenario import scenario as scenarios
from fedpress.simulations.scenario.scenario import Scenario


def new_folder(scenario: Scenario, out: Path | str | None) -> RunFolder:
    """Make the run folder and write the scenario into it.

    Args:
        scenario: The scenario.
        out: Path of the folder, new or empty; None: a new one under `runs/`.

    Raises:
        RunFolderError: `out` is not empty, or cannot be made.
    """
    folder = RunFolder.create(out, name=scenario.name)
    folder.write_scenario(scenario.to_yaml())
    _begin(folder, scenario)
    return folder


def _begin(folder: RunFolder, scenario: Scenario) -> None:
    folder.state.mkdir(exist_ok=True)
    write_atomically(folder.begun, scenario.to_json().encode())


def unfinished(path: Path | str) -> tuple[RunFolder, Scenario]:
    """Return the folder and the scenario of a run that was killed or interrupted.

    Raises:
        RunFolderError: It is no such folder, its run is finished, or its scenario has been changed since.
        ScenarioError: Its scenario.yaml is no longer valid.
    """
    folder = RunFolder.unfinished(path)
    scenario = scenarios.load(folder.scenario)
    if not folder.begun.is_file():  # killed before it was written
        _begin(folder, scenario)
    if changed := _changed(folder, scenario):
        raise RunFolderError(
            f"{folder.scenario} has been changed since the run began ({', '.join(changed)}); a run goes on only as it"
            f" began: undo the change, or run it anew: fedpress simulate {folder.scenario} --out ANOTHER"
        )
    return folder, scenario


def goes_on(folder: RunFolder, scenario: Scenario) -> bool:
    """Whether a run of the scenario has begun in a folder and is to go on; False: a new run may begin there.

    Args:
        folder: The folder, which need not exist.
        scenario: The scenario.

    Raises:
        RunFolderError: The folder holds something else.
    """
    if not folder.begun.is_file():
        folder.check_empty()
        return False
    if _changed(folder, scenario):
        raise RunFolderError(f"{folder.path} holds an unfinished run of another scenario; give another folder")
    return True


def folder_of(scenario: Scenario, out: Path | str | None) -> RunFolder:
    """Return the run folder at `out`: that of an unfinished run of this scenario, else a new one.

    Args:
        scenario: The scenario.
        out: Path of the folder; None: a new one under `runs/`.

    Raises:
        RunFolderError: It holds something else.
    """
    if out is None or not goes_on(RunFolder(Path(out)), scenario):
        return new_folder(scenario, out)
    return unfinished(out)[0]


def _changed(folder: RunFolder, scenario: Scenario) -> list[str]:
    """Return the keys that have changed since the run began; keys added to fedpress since then had their defaults."""
    begun = Scenario.from_json(files.read_text(folder.begun)).model_dump(exclude={"workers"})
    now = scenario.model_dump(exclude={"workers"})
    return sorted(key for key, value in now.items() if begun[key] != value)
