"""Execution of a suite's cells: in parallel, stored by a hash of configuration and code, so that none runs twice.

Each cell is `fedpress simulate` in a process of its own and leaves a run folder; an interrupted one continues from its
checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from fedpress.compression.files import write_atomically
from fedpress.simulations.results.records import Results
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError
from fedpress.simulations.suites.code_version import code_version
from fedpress.simulations.suites.suite import Cell

POLL_SECONDS = 0.5
LEAVING_SECONDS = 30.0
"""Time limit for an interrupted cell to end."""


class Failure(NamedTuple):
    """A cell that failed, and its run's reason, or else the last line of its process's output."""

    cell: Cell
    text: str


class Event(NamedTuple):
    """Progress of a suite, for a display.

    Attributes:
        done: Number of finished cells, earlier ones included.
        total: Number of cells.
        running: Each running cell, and its complete rounds.
        seconds_left: Estimate of the time left; None: not known yet.
        finished: Cell that has just ended, if any.
        failure: Failure of that cell, if it failed.
    """

    done: int
    total: int
    running: list[tuple[Cell, int]]
    seconds_left: float | None
    finished: Cell | None = None
    failure: Failure | None = None


class CellStore:
    """Folder of a suite's runs: `cells/NAME-CODE` is the run folder of a cell, made by a version of the code.

    Args:
        path: The folder.
        any_code: Whether finished runs of other versions count, too.
    """

    def __init__(self, path: Path, *, any_code: bool = False) -> None:
        self.path = path
        self._any_code = any_code

    def folder(self, cell: Cell) -> RunFolder:
        """Return the run folder of a cell; with `any_code`, that of another version if this one has no finished run."""
        here = RunFolder(self.path / "cells" / f"{cell.name}-{code_version()}")
        if self._any_code and not _finished(here):
            for other in sorted(
                self.path.glob(f"cells/{cell.name}-*/results.json"), key=os.path.getmtime, reverse=True
            ):
                if _finished(older := RunFolder(other.parent)):
                    return older
        return here

    def code(self, cell: Cell) -> str:
        """Return the version of the code that made the cell."""
        return self.folder(cell).path.name.rpartition("-")[2]

    def results(self, cell: Cell) -> Results | None:
        """Return the figures of a cell; None: it is not finished."""
        folder = self.folder(cell)
        return folder.load_results() if _finished(folder) else None


def _finished(folder: RunFolder) -> bool:
    with suppress(OSError, RunFolderError):
        return folder.load_results().status == "finished"
    return False


class _Running:
    """A cell's process."""

    def __init__(self, cell: Cell, folder: RunFolder, workers: int) -> None:
        self.cell = cell
        self.folder = folder
        self.began = time.monotonic()
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._scenario = Path(f"{folder.path}.log"), Path(f"{folder.path}.yaml")
        if _can_go_on(folder):
            what = ["--resume", str(folder.path)]
        else:
            shutil.rmtree(folder.path, ignore_errors=True)
            scenario = self._scenario
            write_atomically(scenario, cell.scenario.model_copy(update={"workers": workers}).to_yaml().encode())
            what = [str(scenario), "--out", str(folder.path)]
        self.rounds_before = self.rounds
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedpress.simulations", "simulate", *what],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this process alone, which interrupts the cells once
            )

    @property
    def rounds(self) -> int:
        """Number of complete rounds."""
        with suppress(OSError, ValueError):
            return len(json.loads(self.folder.results.read_text())["rounds"])
        return 0

    def ended(self) -> Failure | None:
        """Remove the files of a finished run that the suite does not need; return the failure of any other."""
        if self.process.returncode == 0 and _finished(self.folder):
            for path in (self.folder.model, self.folder.report, self._log, self._scenario):
                path.unlink(missing_ok=True)
            return None
        with suppress(OSError, RunFolderError):
            if (results := self.folder.load_results()).status == "failed":
                return Failure(self.cell, results.reason)
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return Failure(self.cell, lines[-1] if lines else f"ended with code {self.process.returncode}")

    def interrupt(self) -> None:
        """Ask the run to stop, with a readable folder."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)  # background jobs of a shell ignore SIGINT

    def wait(self) -> None:
        """Wait for the end; kill the process group after a while."""
        try:
            self.process.wait(LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _can_go_on(folder: RunFolder) -> bool:
    with suppress(OSError, RunFolderError):
        return RunFolder.unfinished(folder.path).begun.is_file()
    return False


def run(
    cells: Sequence[Cell], store: CellStore, jobs: int, observer: Callable[[Event], None] = lambda event: None
) -> list[Failure]:
    """Run the cells that are not finished; a cell that fails does not stop the others.

    Args:
        cells: Cells of a suite.
        store: Where their runs are stored.
        jobs: Number of concurrent runs.
        observer: Called with the progress.

    Returns:
        The cells that failed.

    Raises:
        KeyboardInterrupt: Passed on once the running cells have stopped; the next call continues them.
    """
    waiting = [cell for cell in cells if store.results(cell) is None]
    done = len(cells) - len(waiting)
    failures: list[Failure] = []
    running: list[_Running] = []
    pace: dict[int, list[float]] = {}  # seconds a round of the cells of a grid
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, cores // jobs)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running.append(_Running(cell, store.folder(cell), workers))
            time.sleep(POLL_SECONDS)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                failure = one.ended()
                if failure:
                    failures.append(failure)
                else:
                    done += 1
                    ran = one.cell.scenario.rounds - one.rounds_before
                    pace.setdefault(one.cell.grid, []).append((time.monotonic() - one.began) / max(1, ran))
                event = Event(done, len(cells), [], _seconds_left(running, waiting, pace, jobs), one.cell, failure)
                observer(event)
            at_work = [(one.cell, one.rounds) for one in running]
            observer(Event(done, len(cells), at_work, _seconds_left(running, waiting, pace, jobs)))
    except BaseException:
        for one in running:
            one.interrupt()
        for one in running:
            one.wait()
        raise
    return failures


def _seconds_left(
    running: Iterable[_Running], waiting: Iterable[Cell], pace: dict[int, list[float]], jobs: int
) -> float | None:
    """Return the time for all remaining rounds, each at the mean pace of its grid, or of all grids."""
    now = time.monotonic()
    seen = {grid: mean(paces) for grid, paces in pace.items()}
    left: list[tuple[int, int]] = [(cell.grid, cell.scenario.rounds) for cell in waiting]
    for one in running:
        rounds = one.rounds
        if rounds > one.rounds_before:
            seen.setdefault(one.cell.grid, (now - one.began) / (rounds - one.rounds_before))
        left.append((one.cell.grid, one.cell.scenario.rounds - rounds))
    if not seen:
        return None
    other = mean(seen.values())
    return sum(rounds * seen.get(grid, other) for grid, rounds in left) / jobs
