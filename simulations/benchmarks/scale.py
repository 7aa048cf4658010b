"""`fedpress bench scale`: cost of the number of clients, with the same work in each round.

Each number of clients has its own run, in a process of its own. A client takes one step on one example, so that the
overhead around the training is measured. Costs that grow with the clients show in the time of a round, in the start,
or in memory; on disk there is a state file for each client that was sampled once.
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

from fedpress.simulations.benchmarks import memory
from fedpress.simulations.results.records import RoundResult
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import runner
from fedpress.simulations.runs.observer import Observer
from fedpress.simulations.scenario.scenario import Scenario

SAME_WORK = (
    "students.tiers=[]",
    "partition={kind: iid, sizes: equal}",
    "training={epochs: null, steps: 1, batch_size: 1}",
)
"""Overrides that make the work of a round independent of the number of clients."""
LEAST_ROUNDS = 3


class Scale(NamedTuple):
    """Figures of one run.

    Attributes:
        clients: Number of clients.
        per_round: Clients sampled in a round.
        start: Seconds from the start of the process to the end of the first round, minus those of a round.
        start_processor: Processor time of the same, of server and workers; steadier than the clock on a busy machine.
        seconds: Time of a round, median over all but the first.
        processor: Processor time of a round, mean over the same.
        server: Peak resident memory of the server's process, in bytes.
        worker: Peak resident memory of the largest worker, in bytes.
        states: Bytes of a client's state file, mean over the clients that have one.
        asked: Number of clients that have a state file.
        checkpoint: Bytes of the server's last checkpoint.
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


class _Watch(Observer):
    """Observer inside a run's process that measures the processes after each round."""

    def __init__(self, began: float) -> None:
        self._began = began
        self.ends: list[float] = []
        self.processor: list[float] = []
        self.server = self.worker = 0
        self.states: list[int] = []
        self.checkpoint = 0
        self._folder: RunFolder | None = None

    def on_start(self, scenario: Scenario, folder: RunFolder) -> None:
        """Remember the run folder.

        Args:
            scenario: Not used.
            folder: The run folder.
        """
        self._folder = folder

    def on_round(self, result: RoundResult) -> None:
        """Measure time, memory and files."""
        assert self._folder is not None
        self.ends.append(perf_counter() - self._began)
        workers = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
        self.server = memory.resident(os.getpid(), "VmHWM")
        self.worker = max([self.worker, *(memory.resident(worker, "VmHWM") for worker in workers)])
        parents = {int(_stat(worker)[1]) for worker in workers}  # one process that all workers are forked from
        self.processor.append(sum(map(_processor_seconds, {os.getpid(), *workers, *parents})))
        self.states = [path.stat().st_size for path in self._folder.client_states.glob("state-*")]
        self.checkpoint = max(path.stat().st_size for path in self._folder.checkpoints.iterdir())


def run(scenario: Scenario, numbers: Sequence[int], say: Callable[[str], None] = lambda line: None) -> list[Scale]:
    """Run a scenario with each number of clients.

    Args:
        scenario: Scenario with `SAME_WORK`; its number of clients is replaced.
        numbers: Numbers of clients.
        say: Called with each step's name.

    Raises:
        MemoryBenchError: There is no /proc, or the run is too short.
        PartitionError: There are more clients than examples.
        pydantic.ValidationError: There are fewer clients than a round samples.
    """
    if scenario.rounds < LEAST_ROUNDS:
        raise memory.MemoryBenchError(f"got {scenario.rounds} rounds, expected at least {LEAST_ROUNDS}")
    memory.resident(os.getpid())
    scenarios = [Scenario(**{**scenario.model_dump(), "clients": number}) for number in numbers]
    figures = []
    for chosen in scenarios:
        say(f"{chosen.clients:,} clients")
        # A new process each time, so that imports count in the start, and the peak memory is that of this run.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            figures.append(process.submit(_measured, chosen.to_json(), perf_counter()).result())
    return figures


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
    """Return the processor time of a process so far, in seconds."""
    user, system = _stat(process)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _stat(process: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name: state, parent, ..."""
    return Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()


COLUMNS = (
    "clients", "start", "of processor", "a round", "against the first", "of processor", "server", "worker", "a state",
    "checkpoint",
)  # fmt: skip


def rows(runs: Sequence[Scale]) -> list[tuple[str, ...]]:
    """Return a row for each run, under `COLUMNS`."""
    return [
        (
            f"{run.clients:,}",
            f"{run.start:.1f} s",
            f"{run.start_processor:.1f} s",
            f"{run.seconds:.2f} s",
            f"{run.seconds / runs[0].seconds:.2f}x",
            f"{run.processor:.2f} s",
            size(run.server),
            size(run.worker),
            size(round(run.states)),
            size(run.checkpoint),
        )
        for run in runs
    ]


def facts(runs: Sequence[Scale]) -> list[tuple[str, str]]:
    """Return the lines below the table, of the run with most clients."""
    most = max(runs, key=lambda run: run.clients)
    return [
        ("clients a round", f"{most.per_round}"),
        ("disk, once all were asked", f"{size(round(most.states * most.clients))} for {most.clients:,} clients"),
    ]


def as_json(runs: Sequence[Scale]) -> list[dict[str, float]]:
    """Return the figures as plain data."""
    return [run._asdict() for run in runs]
