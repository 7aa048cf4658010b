"""`fedpress bench memory`: resident memory of a run's processes, round by round, and whether it grows.

The resident memory of the server's process and of each worker is read after each round. After a warm-up, in which
caches fill and allocators settle, a line is fitted to each third of the rounds, and the median of the slopes is used: a
leak shows in all thirds, while a new arena of the allocator is a step in one. A run records each round (ledger,
figures), so some growth is expected: memory is reported as growing when it rises by more than `BOOKS` a round, and by
more than the scatter around the line explains.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import tempfile
from array import array
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fedpress.compression.errors import FedpressError
from fedpress.simulations.report import figures
from fedpress.simulations.report.figures import Curve
from fedpress.simulations.results.records import RoundResult
from fedpress.simulations.runs import runner
from fedpress.simulations.runs.observer import Observer
from fedpress.simulations.scenario.scenario import Scenario

WARM_UP = 0.2
"""Fraction of the rounds that is left out of the fit."""
BOOKS = 8192
"""Bytes a round by which a process may grow. The server of `digits` keeps 3 kB of a round: 0.9 kB of ledger, 1.3 kB of
figures, 0.8 kB in Flower's `Result`; writing results.json and the checkpoint needs as much again.
"""
PARTS = 3
"""Number of parts of the rounds after the warm-up; a line is fitted to each."""
LEAST_ROUNDS = 10
"""Least number of rounds for a fit."""


class MemoryBenchError(FedpressError):
    """Resident memory cannot be measured here, or the run is too short."""


def resident(process: int, kind: Literal["VmRSS", "VmHWM"] = "VmRSS") -> int:
    """Return the resident memory of a process in bytes.

    Args:
        process: Process id.
        kind: "VmRSS", the present memory, or "VmHWM", its peak.

    Raises:
        MemoryBenchError: There is no /proc (only Linux has it), or no such process.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError as error:
        raise MemoryBenchError(f"the memory of process {process} cannot be read ({error}); /proc is needed") from None
    (line,) = [line for line in status.splitlines() if line.startswith(f"{kind}:")]
    return 1024 * int(line.split()[1])


class Line(NamedTuple):
    """Line fitted to the resident memory of a process after the warm-up.

    Attributes:
        start: Bytes at the first of its rounds.
        slope: Bytes a round: median of the slopes of the parts, each fitted by least squares.
        scatter: Standard deviation around the line, in bytes.
        rounds: Number of rounds that it was fitted to.
    """

    start: float
    slope: float
    scatter: float
    rounds: int

    @property
    def grows(self) -> bool:
        """Return whether memory rises by more than `BOOKS` a round, and by more than chance."""
        return self.slope > BOOKS and self.slope * self.rounds > 2 * self.scatter


def warm_up(rounds: int) -> int:
    """Return the number of rounds of the warm-up."""
    return math.ceil(WARM_UP * rounds)


def fit(rounds: list[int], memory: list[int]) -> Line:
    """Fit a line to the rounds after the warm-up.

    Args:
        rounds: Numbers of the rounds, rising.
        memory: Bytes after each of them.

    Raises:
        MemoryBenchError: Fewer than `LEAST_ROUNDS` rounds remain.
    """
    begin = warm_up(len(rounds))
    x, y = np.array(rounds[begin:], np.float64), np.array(memory[begin:], np.float64)
    if len(x) < LEAST_ROUNDS:
        least = math.ceil(LEAST_ROUNDS / (1 - WARM_UP))
        raise MemoryBenchError(f"{len(rounds)} rounds are too few for a line; expected at least {least}")
    parts = zip(np.array_split(x, PARTS), np.array_split(y, PARTS), strict=True)
    slope = float(np.median([np.polyfit(part - part[0], values, 1)[0] for part, values in parts]))
    offset = float(np.mean(y - slope * (x - x[0])))
    scatter = float(np.std(y - (offset + slope * (x - x[0]))))
    return Line(offset, slope, scatter, len(x))


class Process(NamedTuple):
    """One process of the run.

    Attributes:
        name: `server` or `worker N`.
        rounds: Rounds after which the memory was read.
        memory: Resident bytes after these rounds.
        line: The fitted line.
    """

    name: str
    rounds: list[int]
    memory: list[int]
    line: Line


class Sampler(Observer):
    """Observer that records the resident memory of a run's processes after each round."""

    def __init__(self) -> None:
        self._samples: dict[int, tuple[array[int], array[int]]] = {}  # process -> rounds, bytes

    def on_round(self, result: RoundResult) -> None:
        """Read the memory of this process, the server's, and of its workers."""
        workers = (child.pid for child in multiprocessing.active_children())
        for process in (os.getpid(), *sorted(pid for pid in workers if pid is not None)):
            rounds, memory = self._samples.setdefault(process, (array("q"), array("q")))
            rounds.append(result.round)
            memory.append(resident(process))

    def processes(self) -> list[Process]:
        """Return the records of the server, then of each worker."""
        processes = []
        for number, (rounds, memory) in enumerate(self._samples.values()):
            name = f"worker {number}" if number else "server"
            processes.append(Process(name, rounds.tolist(), memory.tolist(), fit(rounds.tolist(), memory.tolist())))
        return processes


def run(scenario: Scenario, *observers: Observer) -> list[Process]:
    """Run a scenario in a temporary folder and return the memory of its processes.

    Args:
        scenario: The scenario.
        *observers: Further observers of the run.

    Raises:
        MemoryBenchError: There is no /proc, or the run is too short.
    """
    fit(list(range(scenario.rounds)), [0] * scenario.rounds)  # raises for too few rounds, before the run
    resident(os.getpid())
    sampler = Sampler()
    with tempfile.TemporaryDirectory(prefix="fedpress-memory-") as folder:
        runner.simulate(scenario, Path(folder, "run"), sampler, *observers)
    return sampler.processes()


COLUMNS = ("process", "after warm-up", "at the end", "slope, bytes a round", "verdict")


def rows(processes: list[Process]) -> list[tuple[str, ...]]:
    """Return the table that the command prints."""
    return [
        (
            one.name,
            f"{one.line.start / 1e6:.1f} MB",
            f"{one.memory[-1] / 1e6:.1f} MB",
            f"{one.line.slope:,.0f}",
            "growing" if one.line.grows else "flat",
        )
        for one in processes
    ]


def plot(processes: list[Process]) -> str:
    """Return a plot of the memory over the rounds, as the text of an SVG file."""
    curves = [Curve(f"{one.name}: {one.line.slope:+,.0f} B a round", one.rounds, one.memory) for one in processes]
    return figures.memory_over_rounds(curves, 1 + warm_up(len(processes[0].rounds))).svg()


def as_json(scenario: Scenario, processes: list[Process]) -> dict[str, Any]:
    """Return the figures as plain data.

    Args:
        scenario: The scenario that ran.
        processes: What `run` returned.
    """
    return {
        "scenario": scenario.model_dump(mode="json"),
        "warm_up": WARM_UP,
        "processes": [
            {**one._asdict(), "line": one.line._asdict(), "verdict": "growing" if one.line.grows else "flat"}
            for one in processes
        ],
    }
