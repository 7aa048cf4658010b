"""The folder that a run leaves behind, and the figures in it.

    scenario.yaml        what was run, complete: running it again gives the same model
    results.json         the figures (`Results`), written again after every round
    ledger.csv           every byte: round, node, direction, kind, bytes (`fedpress.compression.ledger`)
    model.safetensors    the global model at the end
    mask.bin             the places of the weights of a model that is sparse from round 1 (`compression.support`)
    partition.npz        which client has which examples: `client-0`, ... are indices into the training split
    architectures.json   shapes of the models that tiers train, by tier and name
    tiers/               of each tier that trains its model, `phone.safetensors`, and its ledger, `phone.csv`
    bundles/             the students as published
    downloads/           the students as clients received them
    payloads/            every accepted payload, `round-0007/node-12.fp`, of a run that keeps them
    run.log              what was logged
    state/               while a run is not finished: checkpoints of the server, what clients keep
    report.html          the page that `fedpress report` makes
    tensorboard/         event files for TensorBoard, where they were asked for

A folder stays readable however the run ends: results.json is replaced as a whole, never written in place,
and its `status` says whether the run finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedpress.compression.errors import FedpressError
from fedpress.compression.files import remove_leftovers, write_atomically
from fedpress.compression.ledger import Ledger
from fedpress.simulations.results.records import Results

RUNS = Path("runs")  # where a run goes that is not told where to go; git ignores it


class RunFolderError(FedpressError, ValueError):
    """A run folder cannot be made, or is missing, torn or not what was expected."""


class RunFolder:
    """The paths of a run, and the writing and reading of its figures."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scenario = path / "scenario.yaml"
        self.results = path / "results.json"
        self.ledger = path / "ledger.csv"
        self.model = path / "model.safetensors"
        self.partition = path / "partition.npz"
        self.architectures = path / "architectures.json"
        self.tiers = path / "tiers"
        self.mask = path / "mask.bin"
        self.bundles = path / "bundles"
        self.downloads = path / "downloads"
        self.payloads = path / "payloads"
        self.log = path / "run.log"
        self.report = path / "report.html"
        self.tensorboard = path / "tensorboard"
        self.state = path / "state"
        self.checkpoints = self.state / "server"
        self.client_states = self.state / "clients"
        self.begun = self.state / "scenario.json"  # as it was when the run began

    @classmethod
    def create(cls, path: Path | str | None = None, *, name: str = "run") -> RunFolder:
        """Makes an empty run folder.

        Args:
            path: where; None: a new folder under `runs/`, called by `name` and the time.
            name: the scenario's name.

        Raises:
            RunFolderError: `path` is a file, or a folder that is not empty, or cannot be made.
        """
        if path is None:
            return cls(_new_folder(RUNS, f"{name}-{datetime.now():%Y%m%d-%H%M%S}"))
        folder = Path(path)
        cls(folder).check_empty()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot make the run folder {folder}: {error.strerror or error}") from error
        return cls(folder)

    def check_empty(self) -> None:
        """Finds out whether a new run may begin here.

        Raises:
            RunFolderError: it is a file, or a folder that is not empty.
        """
        folder = self.path
        if folder.exists() and not folder.is_dir():
            raise RunFolderError(f"{folder} is a file; a run needs a folder of its own")
        if folder.is_dir():
            remove_leftovers(folder)  # of a run that was killed before it had anything
        if folder.is_dir() and any(folder.iterdir()):
            raise RunFolderError(
                f"{folder} is not empty, and a run never mixes with what is there; "
                "give another folder, or remove this one if it is an old run that you no longer need"
            )

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """The run folder at `path`, which must exist and hold a results.json.

        Raises:
            RunFolderError: there is no such folder, or it is not a run's.
        """
        folder = Path(path)
        if not folder.exists():
            raise RunFolderError(f"there is no run folder {folder}{_recent_runs()}")
        if not folder.is_dir():
            raise RunFolderError(f"{folder} is a file; expected the folder of a run (the one that holds results.json)")
        run = cls(folder)
        if not run.results.is_file():
            raise RunFolderError(
                f"{folder} holds no results.json: it is not a run folder, or its run ended before the first figures"
            )
        return run

    def write_scenario(self, text: str) -> None:
        """Writes scenario.yaml."""
        write_atomically(self.scenario, text.encode())

    def save_payload(self, round: int, node: int, payload: bytes) -> None:
        """Writes an accepted payload under `payloads/`."""
        path = self.payloads / f"round-{round:04}" / f"node-{node}.fp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)

    @classmethod
    def unfinished(cls, path: Path | str) -> RunFolder:
        """The folder of a run that was killed or interrupted, at any moment, and can go on.

        Raises:
            RunFolderError: there is no such folder, it is not a run's, or its run is finished.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise RunFolderError(f"there is no run folder {folder}{_recent_runs()}")
        run = cls(folder)
        if not run.scenario.is_file():
            raise RunFolderError(f"{folder} holds no scenario.yaml: it is not a run folder, so no run can go on there")
        if run.results.is_file() and run.load_results().status == "finished":
            raise RunFolderError(
                f"the run in {folder} is finished, nothing is left to do; its report: fedpress report {folder}; to run"
                f" its scenario again: fedpress simulate {folder}"
            )
        if not run.begun.is_file() and (run.results.exists() or run.state.exists() and any(run.state.glob("*/"))):
            raise RunFolderError(
                f"{folder} has no {run.begun.relative_to(folder)}, so its run cannot go on: was its state removed?"
                f" To run its scenario again: fedpress simulate {folder}"
            )
        return run

    def remove_leftovers(self) -> None:
        """Removes what killed writes have left anywhere in the folder; nobody may be writing there."""
        for place in [self.path, *(path for path in self.path.rglob("*") if path.is_dir())]:
            remove_leftovers(place)

    def clear_state(self) -> None:
        """Removes what only a run that goes on needs."""
        shutil.rmtree(self.state, ignore_errors=True)

    def save_results(self, results: Results) -> None:
        """Replaces results.json; a reader sees the old figures or the new ones, never a half."""
        write_atomically(self.results, (results.model_dump_json(indent=1) + "\n").encode())

    def load_results(self) -> Results:
        """Reads results.json.

        Raises:
            RunFolderError: it is missing, torn, or lacks keys.
        """
        try:
            data = self.results.read_bytes()
        except OSError as error:
            raise RunFolderError(f"cannot read {self.results}: {error.strerror or error}") from error
        try:
            return Results.model_validate_json(data)
        except ValidationError as error:
            raise RunFolderError(_explain(self.results, error)) from error

    def load_ledger(self) -> Ledger | None:
        """Read ledger.csv; None where there is none yet.

        Raises:
            RunFolderError: it is torn.
        """
        try:
            return Ledger.load(self.ledger) if self.ledger.is_file() else None
        except ValueError as error:
            raise RunFolderError(str(error)) from error


def load(path: Path | str) -> Results:
    """The figures of the run at `path`.

    Raises:
        RunFolderError: there is no such folder, it is not a run's, or its results.json is torn or lacks keys.
    """
    return RunFolder.open(path).load_results()


def _new_folder(parent: Path, name: str) -> Path:
    """A folder that was not there before; two runs begun in the same second get different ones."""
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise RunFolderError(f"cannot make the run folder {folder}: {error.strerror or error}") from error
        else:
            return folder


def _recent_runs(most: int = 3) -> str:
    """The newest runs, to name in an error; an empty text when there are none."""
    found = sorted(RUNS.glob("*/results.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return "; the newest are " + ", ".join(str(file.parent) for file in found[:most]) if found else ""


def _explain(path: Path, error: ValidationError) -> str:
    problems: Sequence[Mapping[str, Any]] = error.errors(include_url=False)
    if problems[0]["type"] == "json_invalid":
        return f"{path} is torn or not JSON: {problems[0]['ctx']['error']}; was it edited or copied in part?"
    found = "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}" for problem in problems[:5]
    )
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    return f"{path} is not a results.json of this version: {found}{more}"
