"""`fedpress bench warm`: cost of a round on a node, with a new process for each message and with a warm trainer.

A SuperLink and SuperNodes run on this machine, once as Flower starts them and once with a warm trainer for each node
(`fedpress.client.warm.trainer`). On both run plain FedAvg with a model of 1 kB, the same app with fedpress's mod and
strategy, and fedpress's own app on a scenario. Measured are the time of a round, the processor time of a node (all its
processes, without the first round), and the memory of a waiting node. Linux only.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from fedpress.client.warm import hand_over, trainer
from fedpress.compression.errors import FedpressError
from fedpress.simulations.benchmarks import _plain_app
from fedpress.simulations.deploy import flower_processes
from fedpress.simulations.deploy.flower_processes import Deployment
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import job, plan
from fedpress.simulations.scenario.scenario import Scenario

ROUND_SECONDS = 120.0
"""Time limit of a round, after which the run counts as stuck."""
LOOK_SECONDS = 0.02
"""Interval of checks for the end of a round."""


class WarmBenchError(FedpressError):
    """A run had too few rounds, a trainer did not start, or this is not Linux."""


class WarmRow(NamedTuple):
    """Cost of a round of an app on a node, without the first round.

    Attributes:
        app: Name of the app.
        warm: Whether the nodes have a trainer.
        seconds: Median time of a round.
        cpu_seconds: Processor time of a round, mean over rounds and nodes.
    """

    app: str
    warm: bool
    seconds: float
    cpu_seconds: float


class Idle(NamedTuple):
    """A waiting node, mean over the nodes.

    Attributes:
        warm: Whether it has a trainer.
        memory_bytes: Memory of all its processes, with shared pages divided among them (PSS).
        trainer_bytes: The trainer's part of it.
        cpu_ms: Processor time, milliseconds a second.
    """

    warm: bool
    memory_bytes: float
    trainer_bytes: float
    cpu_ms: float


class WarmFigures(NamedTuple):
    """Figures of the benchmark."""

    nodes: int
    rounds: int
    rows: list[WarmRow]
    idle: list[Idle]


def run(scenario: Scenario, idle_seconds: float, tell: Callable[[str], None] = lambda _: None) -> WarmFigures:
    """Run the apps on nodes as Flower starts them, then on warm ones.

    Args:
        scenario: Scenario of fedpress's own app; each of its clients is a node.
        idle_seconds: Duration of the measurement of waiting nodes.
        tell: Called with each step's name.

    Raises:
        DeploymentError: Flower's processes do not start, or one of them ends.
        WarmBenchError: A run had too few rounds, a trainer did not start, or this is not Linux.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        raise WarmBenchError("bench warm reads processor time and memory from /proc, which only Linux has")
    rows, idle = list[WarmRow](), list[Idle]()
    for with_trainer in (False, True):
        with tempfile.TemporaryDirectory(prefix="fedpress-warm-") as name, ExitStack() as stack:
            folder = Path(name)
            tell(f"starting {'warm' if with_trainer else 'plain'} nodes")
            running = stack.enter_context(Deployment(folder))
            groups = []
            for number in range(scenario.clients):
                trainer, environment = None, dict[str, str]()
                if with_trainer:
                    trainer, environment = stack.enter_context(_trainer(folder / f"trainer-{number}"))
                node = running.add_node(number, scenario.clients, running.port, environment)
                groups.append(_Group(node, trainer))
            for app in _apps(folder, scenario):
                tell(f"running {app.name}")
                rows.append(_measured(app, with_trainer, running, scenario.rounds, groups))
            tell(f"watching waiting nodes for {idle_seconds:.0f} s")
            idle.append(_idle(with_trainer, groups, idle_seconds))
    return WarmFigures(scenario.clients, scenario.rounds, rows, idle)


class _Group(NamedTuple):
    """Processes of a node: the SuperNode's session, and the trainer's."""

    node: int
    trainer: int | None

    def processes(self) -> Iterator[Path]:
        """Yield the processes' folders in /proc, zombies included."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.getsid(int(process.name)) in (self.node, self.trainer):
                    yield process

    def cpu(self) -> float:
        """Return the processor time so far in seconds, with that of ended children."""
        total = 0
        for process in self.processes():
            with suppress(OSError):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                total += sum(map(int, fields[11:15]))
        return total / os.sysconf("SC_CLK_TCK")

    def memory(self, session: int | None = None) -> int:
        """Return the memory (PSS, bytes) of the processes, or of those of one session."""
        total = 0
        for process in self.processes():
            with suppress(OSError):
                if session in (None, os.getsid(int(process.name))):
                    lines = (process / "smaps_rollup").read_text().splitlines()
                    total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total


@contextmanager
def _trainer(folder: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Start a trainer; yield its process id and the environment variables for its node."""
    folder.mkdir()
    address = folder / "socket"
    path = flower_processes.environment(folder)["PATH"]
    environment = hand_over.write_command(folder / "bin", address, flower_processes.command("flwr-clientapp"), path)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", trainer.__name__, str(address)],
            env=flower_processes.environment(folder.parent / "flwr"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        patience = time.monotonic() + flower_processes.START_SECONDS
        while not address.exists():
            if process.poll() is not None or time.monotonic() > patience:
                raise WarmBenchError(f"the trainer does not listen:\n{(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield process.pid, environment
    finally:
        process.terminate()
        process.wait()


class _App(NamedTuple):
    """An app: its name, its folder, and a function that returns the number of its complete rounds."""

    name: str
    folder: Path
    rounds: Callable[[], int]


def _apps(folder: Path, scenario: Scenario) -> Iterator[_App]:
    """Write the apps and yield them."""
    module, out, times = _plain_app.__name__, folder / "run", folder / "times"
    size: dict[str, str | int] = {"nodes": scenario.clients, "rounds": scenario.rounds}
    for name, kind in (("plain Flower, 1 kB", ""), ("the same with fedpress", "sparse_")):
        lines = times.with_name(f"{kind}times")
        refs = (f"{module}:{kind}server", f"{module}:{kind}client")
        app = flower_processes.write_app(folder, f"{kind}app".replace("_", "-"), *refs, {**size, "times": str(lines)})
        yield _App(name, app, lambda lines=lines: lines.read_text().count("\n") if lines.exists() else 0)  # type: ignore[misc]
    config: dict[str, str | int] = {
        "workload": job.REFERENCE, "plan": plan.REFERENCE, "scenario": scenario.to_json(), "out": str(out),
    }  # fmt: skip
    app = flower_processes.write_app(
        folder, "fedpress-app", "fedpress.server.app:app", "fedpress.client.app:app", config
    )
    results = RunFolder(out)
    yield _App(
        f"fedpress on {scenario.name}",
        app,
        lambda: len(results.load_results().rounds) if results.results.exists() else 0,
    )


def _measured(app: _App, with_trainer: bool, running: Deployment, rounds: int, groups: list[_Group]) -> WarmRow:
    """Run an app, with time and processor time taken at the end of each round."""
    ends: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            if app.rounds() > len(ends):
                ends.append((time.monotonic(), sum(group.cpu() for group in groups)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        log = running.run(app.folder, ROUND_SECONDS * (rounds + 1))
    finally:
        over.set()
        watcher.join()
    if len(ends) != rounds:
        raise WarmBenchError(f"{app.name}: {len(ends)} rounds were seen, expected {rounds}:\n{log[-3000:]}")
    seconds = [later - earlier for (earlier, _), (later, _) in pairwise(ends)]
    spent = (ends[-1][1] - ends[0][1]) / (rounds - 1) / len(groups)
    return WarmRow(app.name, with_trainer, statistics.median(seconds), spent)


def _idle(with_trainer: bool, groups: list[_Group], seconds: float) -> Idle:
    before = sum(group.cpu() for group in groups)
    time.sleep(seconds)
    spent = sum(group.cpu() for group in groups) - before
    nodes = len(groups)
    return Idle(
        with_trainer,
        sum(group.memory() for group in groups) / nodes,
        sum(group.memory(group.trainer) for group in groups if group.trainer) / nodes,
        1000 * spent / seconds / nodes,
    )


COLUMNS = ("app", "a round", "warm", "processor time of a node", "warm", "of plain Flower's")


def rows(figures: WarmFigures) -> list[tuple[str, ...]]:
    """Return the table that the command prints."""
    cold = {row.app: row for row in figures.rows if not row.warm}
    plain = figures.rows[0].cpu_seconds
    return [
        (
            row.app,
            f"{cold[row.app].seconds:.1f} s",
            f"{row.seconds:.1f} s",
            f"{cold[row.app].cpu_seconds:.2f} s",
            f"{row.cpu_seconds:.2f} s",
            f"{row.cpu_seconds / plain:.0%}",
        )
        for row in figures.rows
        if row.warm
    ]


def facts(figures: WarmFigures) -> list[tuple[str, str]]:
    """Return the lines that the command prints below the table."""
    return [
        (
            f"a {'warm' if idle.warm else 'plain'} node that waits",
            f"{idle.memory_bytes / 1e6:.0f} MB"
            + (f", {idle.trainer_bytes / 1e6:.0f} MB of it the trainer's" if idle.warm else "")
            + f"; {idle.cpu_ms:.0f} ms of processor time a second",
        )
        for idle in figures.idle
    ]


def as_json(figures: WarmFigures) -> dict[str, Any]:
    """Return the figures as JSON has them."""
    return {
        **figures._asdict(),
        "rows": [row._asdict() for row in figures.rows],
        "idle": [idle._asdict() for idle in figures.idle],
    }
