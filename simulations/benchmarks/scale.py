"""`fedpress bench scale`: what the number of clients costs, with the same work in each round.

Each number of clients gets a run of its own, in a process of its own. A client takes one step on one example, so that
what is seen is what stands around the training. What grows with the clients shows in the seconds of a round, in the
start, or in memory; what they keep grows on the disk, a file for each client that was asked once.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
from rich.filesize import decimal as size

from fedpress.compression.models.step import SearchProgress
from fedpress.simulations.benchmarks import memory
from fedpress.simulations.results.records import Results, RoundResult, StudentResult
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import runner
from fedpress.simulations.scenario.scenario import Scenario

SAME_WORK = (
    "students.tiers=[]",
    "partition={kind: iid, sizes: equal}",
    "training={epochs: null, steps: 1, batch_size: 1}",
)
"""What makes the work of a round the same with any number of clients."""
LEAST_ROUNDS = 3


class Scale(NamedTuple):
    """One run.

    Attributes:
        clients: how many there were.
        per_round: how many of them a round asks.
        start: seconds from the start of its process to the end of the first round, less those of a round.
        start_processor: the processor time of that, of the server and the workers together: on a busy machine it says
            more than the clock.
        seconds: a round, median over all but the first.
        processor: the processor time of a round, mean over the same.
        server: the largest resident memory of the server's process, bytes.
        worker: that of the largest worker.
        states: bytes of a client's file on the disk, mean over the clients that have one.
        asked: how many have.
        checkpoint: bytes of the server's last checkpoint.
    """

    clients: int
    per_round: int
    start: float
    start_processor: float
    seconds: float
    processor: float
    server: int
    worker: int
    states: float
    asked: int
    checkpoint: int


class _Watch:
    """Follows a run from inside its process, and looks at the processes after each round."""

    def __init__(self, began: float) -> None:
        self._began = began
        self.ends: list[float] = []
        self.processor: list[float] = []
        self.server = self.worker = 0
        self.states: list[int] = []
        self.checkpoint = 0
        self._folder: RunFolder | None = None

    def on_start(self, scenario: Scenario, folder: RunFolder) -> None:
        """Remember where it runs."""
        self._folder = folder

    def on_resume(self, rounds: list[RoundResult]) -> None:
        """Never here."""

    def on_round(self, result: RoundResult) -> None:
        """Look at time, memory and disk."""
        assert self._folder is not None
        self.ends.append(perf_counter() - self._began)
        workers = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
        self.server = memory.resident(os.getpid(), "VmHWM")
        self.worker = max([self.worker, *(memory.resident(worker, "VmHWM") for worker in workers)])
        parents = {int(_stat(worker)[1]) for worker in workers}  # one process that all workers are forked from
        self.processor.append(sum(map(_processor_seconds, {os.getpid(), *workers, *parents})))
        self.states = [path.stat().st_size for path in self._folder.client_states.glob("state-*")]
        self.checkpoint = max(path.stat().st_size for path in self._folder.checkpoints.iterdir())

    def on_search(self, tier: str, step: SearchProgress) -> None:
        """Never here."""

    def on_student(self, result: StudentResult) -> None:
        """Never here."""

    def on_end(self, results: Results) -> None:
        """The run is over."""


def run(scenario: Scenario, numbers: Sequence[int], say: Callable[[str], None] = lambda line: None) -> list[Scale]:
    """Run a scenario with so many clients each time, and return what each run took.

    Args:
        scenario: with `SAME_WORK`; its number of clients is replaced.
        numbers: of clients.
        say: is told what begins.

    Raises:
        MemoryBenchError: there is no /proc, or the run is too short.
        PartitionError: more clients than examples.
        pydantic.ValidationError: fewer clients than a round asks.
    """
    if scenario.rounds < LEAST_ROUNDS:
        raise memory.MemoryBenchError(f"got {scenario.rounds} rounds, expected at least {LEAST_ROUNDS}")
    memory.resident(os.getpid())
    scenarios = [Scenario(**{**scenario.model_dump(), "clients": number}) for number in numbers]
    found = []
    for one in scenarios:
        say(f"{one.clients:,} clients")
        # A process each: nothing is loaded yet, and the largest memory is that of this run.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found.append(process.submit(_measured, one.to_json(), perf_counter()).result())
    return found


def _measured(scenario: str, began: float) -> Scale:
    chosen = Scenario.from_json(scenario)
    watch = _Watch(began)
    with tempfile.TemporaryDirectory(prefix="fedpress-scale-") as folder:
        runner.simulate(chosen, Path(folder, "run"), watch)
    later = np.diff(watch.ends)
    seconds = float(np.median(later))
    processor = (watch.processor[-1] - watch.processor[0]) / len(later)
    states = float(np.mean(watch.states)) if watch.states else 0.0
    return Scale(
        chosen.clients, chosen.sampling.clients_per_round, watch.ends[0] - seconds, watch.processor[0] - processor,
        seconds, processor, watch.server, watch.worker, states, len(watch.states), watch.checkpoint,
    )  # fmt: skip


def _processor_seconds(process: int) -> float:
    """Return the processor time that a process has taken so far."""
    user, system = _stat(process)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _stat(process: int) -> list[str]:
    """Return what /proc/PID/stat says after the name: state, parent, ..."""
    return Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()


COLUMNS = (
    "clients", "start", "of processor", "a round", "against the first", "of processor", "server", "worker", "a state",
    "checkpoint",
)  # fmt: skip


def rows(found: Sequence[Scale]) -> list[tuple[str, ...]]:
    """Return the table that the command prints."""
    return [
        (
            f"{one.clients:,}",
            f"{one.start:.1f} s",
            f"{one.start_processor:.1f} s",
            f"{one.seconds:.2f} s",
            f"{one.seconds / found[0].seconds:.2f}x",
            f"{one.processor:.2f} s",
            size(one.server),
            size(one.worker),
            size(round(one.states)),
            size(one.checkpoint),
        )
        for one in found
    ]


def facts(found: Sequence[Scale]) -> list[tuple[str, str]]:
    """Return the lines under the table."""
    most = max(found, key=lambda one: one.clients)
    return [
        ("clients a round", f"{most.per_round}"),
        ("disk, once all were asked", f"{size(round(most.states * most.clients))} for {most.clients:,} clients"),
    ]


def as_json(found: Sequence[Scale]) -> list[dict[str, float]]:
    """Return the figures as JSON has them."""
    return [one._asdict() for one in found]
