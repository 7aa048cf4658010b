"""Folder of a run: its files, and the figures in them.

    scenario.yaml        the whole scenario: running it again gives the same model
    results.json         the figures (`Results`), written again after every round
    ledger.csv           every byte: round, node, direction, kind, bytes (`fedpress.compression.ledger`)
    model.safetensors    the global model at the end
    mask.bin             first mask of a sparse model: positions of its weights (`compression.wire.position_set`)
    partition.npz        examples of each client: `client-0`, ... are indices into the training split
    architectures.json   shapes of the models that tiers train by tier and name, and numbers beside them
    tiers/               for each tier that trains: its model, `phone.safetensors`, and its ledger, `phone.csv`
    bundles/             the students as published
    downloads/           the students as clients received them
    payloads/            every accepted payload, `round-0007/node-12.fp`, of a run that keeps them
    run.log              Flower's log of the server and all workers
    state/               while a run is not finished: checkpoints and journal of the server, states of the clients
    report.html          page that `fedpress report` makes
    tensorboard/         event files for TensorBoard, of a run with --tensorboard

A folder stays readable however the run ends: results.json is replaced as a whole, never written in place,
and its `status` says whether the run finished, was interrupted or has failed; then `reason` says why.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedpress.compression.errors import FedpressError
from fedpress.compression.files import read_regular, remove_leftovers, write_atomically
from fedpress.compression.ledger import Ledger
from fedpress.simulations.results.records import Results

RUNS = Path("runs")
"""Parent of new run folders without a given path; git ignores it."""
MOST_RESULTS = 1 << 28
"""Largest results.json in bytes; a round takes about 300."""
MOST_NUMBER = 1 << 53
"""Largest figure of a run, such as bytes of a round: nine petabytes; up to here floats are exact."""


class RunFolderError(FedpressError, ValueError):
    """A run folder cannot be made, or is missing, torn or of another kind than expected."""


class RunFolder:
    """Paths of a run's files; reads and writes its figures.

    Args:
        path: The folder, which need not exist.
    """

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
        self.begun = self.state / "scenario.json"  # as of the beginning of the run

    @classmethod
    def create(cls, path: Path | str | None = None, *, name: str = "run") -> RunFolder:
        """Make an empty run folder and return it.

        Args:
            path: Its path; None: a new folder under `runs/`, named by `name` and the time.
            name: Name of the scenario.

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
        """Check that a new run may begin here.

        Raises:
            RunFolderError: It is a file, or a folder that is not empty.
        """
        folder = self.path
        if folder.exists() and not folder.is_dir():
            raise RunFolderError(f"{folder} is a file; a run needs a folder of its own")
        if folder.is_dir():
            remove_leftovers(folder)  # of a run that was killed before its first file
        if folder.is_dir() and any(folder.iterdir()):
            raise RunFolderError(
                f"{folder} is not empty, and a run never mixes with what is there; "
                "give another folder, or remove this one if it is an old run that you no longer need"
            )

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Return the run folder at `path`, which must exist and hold a results.json.

        Raises:
            RunFolderError: There is no such folder, or it is not a run's.
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
        """Write scenario.yaml."""
        write_atomically(self.scenario, text.encode())

    def save_payload(self, round: int, node: int, payload: bytes) -> None:
        """Write an accepted payload under `payloads/`.

        Args:
            round: Number of the round, from 1.
            node: Id of the node.
            payload: The encoded update.
        """
        path = self.payloads / f"round-{round:04}" / f"node-{node}.fp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)

    @classmethod
    def unfinished(cls, path: Path | str) -> RunFolder:
        """Return the folder of a run that was killed or interrupted, at any moment, and can go on.

        Raises:
            RunFolderError: There is no such folder, it is not a run's, or its run is finished.
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
        """Remove the temporary files of killed writes; no process may be writing in the folder."""
        for folder in [self.path, *(path for path in self.path.rglob("*") if path.is_dir())]:
            remove_leftovers(folder)

    def clear_state(self) -> None:
        """Remove checkpoints and clients' states, which only a run that goes on needs."""
        shutil.rmtree(self.state, ignore_errors=True)

    def save_results(self, results: Results) -> None:
        """Replace results.json atomically: a reader sees the old figures or the new ones."""
        write_atomically(self.results, (results.model_dump_json(indent=1) + "\n").encode())

    def load_results(self) -> Results:
        """Read results.json.

        Raises:
            RunFolderError: It is missing, torn, lacks keys, or has figures that no run can have.
        """
        try:
            data = read_regular(self.results, MOST_RESULTS)
        except OSError as error:
            raise RunFolderError(f"cannot read {self.results}: {error.strerror or error}") from error
        try:
            results = Results.model_validate_json(data)
        except ValidationError as error:
            raise RunFolderError(_explain(self.results, error)) from error
        for place, number in _numbers(results.model_dump(exclude={"scenario", "seed"})):
            if not _is_possible(place[-1], number):
                raise RunFolderError(
                    f"{self.results} is not a run's: {'.'.join(map(str, place))} is {str(number)[:40]}, which no run"
                    " can have; was it edited or damaged?"
                )
        return results

    def load_ledger(self) -> Ledger | None:
        """Read ledger.csv; None where there is none yet.

        Raises:
            RunFolderError: It is torn.
        """
        try:
            return Ledger.load(self.ledger) if self.ledger.is_file() else None
        except (ValueError, OSError) as error:
            raise RunFolderError(str(error)) from error


def load(path: Path | str) -> Results:
    """Return the figures of the run at `path`.

    Raises:
        RunFolderError: There is no such folder, it is not a run's, or its results.json is torn or lacks keys.
    """
    return RunFolder.open(path).load_results()


def _numbers(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Yield each number of nested lists and dictionaries, with the keys that lead to it."""
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _numbers(inner, (*place, key))
    elif isinstance(value, int | float):
        yield place, value


def _is_possible(name: Any, number: float) -> bool:
    """Return whether a figure can be of a run; a loss may be anything, since training may diverge."""
    return name == "loss" or (abs(number) <= MOST_NUMBER and (number >= 0 or name in ("worst_lost", "score", "cost")))


def _new_folder(parent: Path, name: str) -> Path:
    """Make a new folder; two runs begun in the same second get different ones."""
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
    """Return the newest runs, to name in an error; an empty text if there are none."""
    files = sorted(RUNS.glob("*/results.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return "; the newest are " + ", ".join(str(file.parent) for file in files[:most]) if files else ""


def _explain(path: Path, error: ValidationError) -> str:
    problems: Sequence[Mapping[str, Any]] = error.errors(include_url=False)
    if problems[0]["type"] == "json_invalid":
        return f"{path} is torn or not JSON: {problems[0]['ctx']['error']}; was it edited or copied in part?"
    listed = "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}" for problem in problems[:5]
    )
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    return f"{path} is not a results.json of this version: {listed}{more}"
