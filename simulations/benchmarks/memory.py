"""`fedpress bench memory`: resident memory of a run's processes, round by round, and whether it grows.

After each round the kernel is asked how much memory of the server's process and of each worker is resident. After a
warm-up, in which caches fill and allocators settle, a line is fitted to each third of the rounds, and the median of
their slopes counts: what grows, grows in all of them, while an allocator that takes another arena makes a step in one.
A run keeps its books (the ledger, each round's figures), so a slope of zero is not the mark; memory grows when it rises
by more than `BOOKS` a round, and by more than the scatter around the line explains.
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
from fedpress.compression.models.step import SearchProgress
from fedpress.simulations.report import figures
from fedpress.simulations.report.figures import Curve
from fedpress.simulations.results.records import Results, RoundResult, StudentResult
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import recorder, runner
from fedpress.simulations.scenario.scenario import Scenario

WARM_UP = 0.2
"""The part of the rounds that is left out of the fit."""
BOOKS = 8192
"""Bytes a round that a process may grow by. What the server of `digits` keeps of a round is 3 kB: 0.9 kB of ledger,
1.3 kB of figures, 0.8 kB in Flower's `Result`. Writing results.json and the checkpoint needs room for them once more.
"""
PARTS = 3
"""Into how many parts the rounds after the warm-up are cut; a line is fitted to each."""
LEAST_ROUNDS = 10
"""With fewer, a line says nothing."""


class MemoryBenchError(FedpressError):
    """Resident memory cannot be measured here, or the run is too short."""


def resident(process: int, kind: Literal["VmRSS", "VmHWM"] = "VmRSS") -> int:
    """Return the resident memory of a process, in bytes: as of now, or with `VmHWM` the most that it ever was.

    Raises:
        MemoryBenchError: there is no /proc (it is Linux's), or no such process.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError as error:
        raise MemoryBenchError(f"the memory of process {process} cannot be read ({error}); /proc is needed") from None
    (line,) = [line for line in status.splitlines() if line.startswith(f"{kind}:")]
    return 1024 * int(line.split()[1])


class Line(NamedTuple):
    """How the resident memory of one process goes on after the warm-up.

    Attributes:
        start: bytes at the first of its rounds.
        slope: bytes a round, the median of the slopes of its parts, each fitted by least squares.
        scatter: standard deviation around it, bytes.
        rounds: how many rounds it was fitted to.
    """

    start: float
    slope: float
    scatter: float
    rounds: int

    @property
    def grows(self) -> bool:
        """Tell whether it rises by more than the books do, and by more than chance."""
        return self.slope > BOOKS and self.slope * self.rounds > 2 * self.scatter


def warm_up(rounds: int) -> int:
    """Return how many of the rounds are left out of the fit."""
    return math.ceil(WARM_UP * rounds)


def fit(rounds: list[int], memory: list[int]) -> Line:
    """Fit a line to what follows the warm-up.

    Args:
        rounds: numbers of the rounds, rising.
        memory: bytes after each of them.

    Raises:
        MemoryBenchError: fewer than `LEAST_ROUNDS` rounds are left.
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
        rounds: rounds after which it was looked at.
        memory: its resident bytes then.
        line: the fitted line.
    """

    name: str
    rounds: list[int]
    memory: list[int]
    line: Line


class Sampler:
    """Follows a run, and notes the resident memory of its processes after each round."""

    def __init__(self, inner: recorder.Observer | None = None) -> None:
        self._inner = inner
        self._samples: dict[int, tuple[array[int], array[int]]] = {}  # process -> rounds, bytes

    def on_start(self, scenario: Scenario, folder: RunFolder) -> None:
        """The run begins."""
        if self._inner:
            self._inner.on_start(scenario, folder)

    def on_resume(self, rounds: list[RoundResult]) -> None:
        """The run goes on."""
        if self._inner:
            self._inner.on_resume(rounds)

    def on_round(self, result: RoundResult) -> None:
        """Look at this process, the server's, and at its workers."""
        workers = (child.pid for child in multiprocessing.active_children())
        for process in (os.getpid(), *sorted(pid for pid in workers if pid is not None)):
            rounds, memory = self._samples.setdefault(process, (array("q"), array("q")))
            rounds.append(result.round)
            memory.append(resident(process))
        if self._inner:
            self._inner.on_round(result)

    def on_search(self, tier: str, step: SearchProgress) -> None:
        """The search for a student goes on."""
        if self._inner:
            self._inner.on_search(tier, step)

    def on_student(self, result: StudentResult) -> None:
        """A student was made."""
        if self._inner:
            self._inner.on_student(result)

    def on_end(self, results: Results) -> None:
        """The run is over."""
        if self._inner:
            self._inner.on_end(results)

    def processes(self) -> list[Process]:
        """Return what was seen: the server first, then each worker."""
        found = []
        for number, (rounds, memory) in enumerate(self._samples.values()):
            name = f"worker {number}" if number else "server"
            found.append(Process(name, rounds.tolist(), memory.tolist(), fit(rounds.tolist(), memory.tolist())))
        return found


def run(scenario: Scenario, inner: recorder.Observer | None = None) -> list[Process]:
    """Run a scenario in a temporary run folder and return the memory of its processes.

    Raises:
        MemoryBenchError: there is no /proc, or the run is too short.
    """
    fit(list(range(scenario.rounds)), [0] * scenario.rounds)  # too few rounds are found out before they are run
    resident(os.getpid())
    sampler = Sampler(inner)
    with tempfile.TemporaryDirectory(prefix="fedpress-memory-") as folder:
        runner.simulate(scenario, Path(folder, "run"), sampler)
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
    """Return the memory over the rounds as an SVG file's text."""
    curves = [Curve(f"{one.name}: {one.line.slope:+,.0f} B a round", one.rounds, one.memory) for one in processes]
    return figures.memory_over_rounds(curves, 1 + warm_up(len(processes[0].rounds))).svg()


def as_json(scenario: Scenario, processes: list[Process]) -> dict[str, Any]:
    """Return the figures as JSON has them."""
    return {
        "scenario": scenario.model_dump(mode="json"),
        "warm_up": WARM_UP,
        "processes": [
            {**one._asdict(), "line": one.line._asdict(), "verdict": "growing" if one.line.grows else "flat"}
            for one in processes
        ],
    }
