"""A scenario on a Ray cluster of two machines, both on this one: two raylets with nothing in common but the network.

Each has its own working folder, its own folders for temporary files and sockets, and finds the run folder empty where
the system lets it have its own view of the files (`unshare`, Linux).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from fedpress.compression.ledger import Ledger
from fedpress.simulations.deploy import flower_processes
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import runner
from fedpress.simulations.scenario import scenario

pytest.importorskip("ray", reason="Flower's simulation engine needs Ray: the extra `cluster`")

APPS = Path(__file__).parents[2] / "apps"
SCENARIO = """
name: on-a-cluster
task: digits
clients: 6
sampling: {clients_per_round: 4}
training: {batch_size: 16}
"""
MINUTES = pytest.mark.skipif("FEDPRESS_CLUSTER" not in os.environ, reason="minutes; FEDPRESS_CLUSTER=1 runs it")
SIMULATE = ["-m", "fedpress.simulations", "simulate", "--engine", "flower"]
WAIT = """
import sys, time
import ray

until = time.monotonic() + 150
while True:
    try:
        ray.init(sys.argv[1], logging_level="ERROR")
        break
    except ConnectionError:
        if time.monotonic() > until:
            raise
while len(ray.nodes()) < 2:
    assert time.monotonic() < until, ray.nodes()
    time.sleep(0.2)
"""


class Cluster:
    """Two raylets; `shared` is a folder that the second finds empty."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shared = root / "shared"
        self.shared.mkdir()
        port = flower_processes.free_port()
        self.address = f"127.0.0.1:{port}"
        self.mark = f"FEDPRESS_TEST_CLUSTER={root}"
        self.machines = [
            self._start(1, "--head", f"--port={port}", "--include-dashboard=false"),
            self._start(2, f"--address={self.address}"),
        ]

    def environment(self, **own: str) -> dict[str, str]:
        name, _, value = self.mark.partition("=")
        path = os.pathsep.join([*sys.path, str(APPS)])
        return {**os.environ, name: value, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", **own}

    def _start(self, number: int, *options: str) -> subprocess.Popen[bytes]:
        home = self.root / f"machine-{number}"
        (home / "tmp").mkdir(parents=True)
        ray = Path(sys.executable).with_name("ray")
        if not ray.exists():
            pytest.skip("no ray command beside this Python")
        # Names of sockets are short: the temporary folder of a test is too deep for them.
        command = [
            str(ray), "start", *options, "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1",
            f"--ray-client-server-port={flower_processes.free_port()}", "--object-store-memory=100000000",
            f"--temp-dir={self.sockets(number)}",
        ]  # fmt: skip
        if number == 2 and (apart := _own_view(self.shared)):
            command = [*apart, *command]
        with (home / "output").open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=home,
                env=self.environment(MACHINE=str(number), HOME=str(home), TMPDIR=str(home / "tmp")),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def sockets(self, number: int) -> Path:
        return Path(f"/tmp/fedpress-{os.getpid()}-{number}")

    def wait(self) -> None:
        """Wait until both machines are there."""
        ended = self.run("-c", WAIT, self.address)
        if ended.returncode:
            outputs = [(self.root / f"machine-{number}" / "output").read_text() for number in (1, 2)]
            pytest.fail("\n".join(["the cluster did not come up", ended.stderr, *outputs]))

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a Python process beside the cluster, in a folder of its own."""
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.root,
            env=self.environment(TMPDIR=str(self.root)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        process = self.start(*command)
        try:
            output, errors = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def wait_for_rounds(self, process: subprocess.Popen[str], run: RunFolder, least: int) -> int:
        """Wait until a run has so many rounds behind it, and return how many."""
        until = time.monotonic() + 180
        while not run.results.exists() or len(run.load_results().rounds) < least:
            assert time.monotonic() < until and process.poll() is None, finished(process)
            time.sleep(0.02)
        return len(run.load_results().rounds)

    def kill(self, *marks: str) -> None:
        """Kill what bears the mark of this cluster, and these, and nothing else."""
        wanted = {mark.encode() for mark in (self.mark, *marks)}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted <= set((process / "environ").read_bytes().split(b"\0")):
                    os.kill(int(process.name), signal.SIGKILL)

    def stop(self) -> None:
        """End all of it."""
        self.kill()
        for machine in self.machines:
            machine.wait(timeout=10)
        for number in (1, 2):
            shutil.rmtree(self.sockets(number), ignore_errors=True)


def _own_view(folder: Path) -> list[str]:
    """What to put before a command so that it finds a folder empty; nothing where that cannot be had."""
    apart = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    apart += ["sh", "-c", f'mount -t tmpfs none "{folder}" && exec "$@"', "sh"]
    works = shutil.which("unshare") and subprocess.run([*apart, "true"], capture_output=True).returncode == 0
    return apart if works else []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        started.wait()
        yield started
    finally:
        started.stop()


@pytest.mark.slow
@pytest.mark.deployment
def test_a_client_keeps_its_state_when_another_machine_runs_it(cluster: Cluster) -> None:
    ended = cluster.run(str(APPS / "cluster_states.py"), cluster.address)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (line,) = [
        line for line in ended.stdout.splitlines() if line.startswith("{")
    ]  # Ray has a word on processes that die
    found = json.loads(line)
    nodes = [str(node) for node in range(1, 5)]
    for number, answers in enumerate(found["rounds"], start=1):
        assert {node: answer["count"] for node, answer in answers.items()} == dict.fromkeys(nodes, number)
    places = [{answers[node]["machine"] for answers in found["rounds"]} for node in nodes]
    assert {1, 2} in places, places  # or nothing was shown
    failed, died = found["reasons"]
    assert failed == "ZeroDivisionError: as asked"
    assert "ActorDiedError" in died or "ActorUnavailableError" in died, died
    assert found["after"] == [11] * 4  # states are as they were, and the process that died is there again


def assert_same(run: RunFolder, scenario_file: Path, inline: Path) -> None:
    """A run's figures and model are those that the scenario gives on the inline engine."""
    torch.set_num_threads(1)
    expected = runner.simulate(scenario.load(scenario_file), inline)
    results = run.load_results()
    assert results.status == "finished"
    assert results.model.sha256 == expected.model.sha256  # with the optimizer, and with what every client keeps
    assert results.rounds == expected.rounds
    ledgers = [Ledger.load(path) for path in (run.ledger, RunFolder(inline).ledger)]
    assert sorted(ledgers[0].rows) == sorted(ledgers[1].rows)  # they differ in the order of arrival


@pytest.mark.slow
@pytest.mark.deployment
def test_a_run_on_two_machines_is_that_of_the_inline_engine(cluster: Cluster) -> None:
    path, run = cluster.shared / "scenario.yaml", RunFolder(cluster.shared / "run")
    path.write_text(SCENARIO + "rounds: 4\n")
    ended = cluster.run(*SIMULATE, "--ray-address", cluster.address, str(path), "--out", str(run.path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 processes for clients" in run.log.read_text()
    assert_same(run, path, cluster.root / "inline")


@pytest.mark.slow
@pytest.mark.deployment
@MINUTES
def test_a_run_goes_on_after_ctrl_c_to_the_same_end(cluster: Cluster) -> None:
    path, run = cluster.shared / "stopped.yaml", RunFolder(cluster.shared / "stopped")
    path.write_text(SCENARIO + "rounds: 12\n")
    simulate = [*SIMULATE, "--ray-address", cluster.address]
    process = cluster.start(*simulate, str(path), "--out", str(run.path))
    cluster.wait_for_rounds(process, run, 1)
    process.send_signal(signal.SIGINT)
    _, errors = finished(process)
    stopped = run.load_results()
    assert (process.returncode, stopped.status) == (130, "interrupted"), errors
    assert 1 <= len(stopped.rounds) < 12
    ended = cluster.run(*simulate, "--resume", str(run.path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert_same(run, path, cluster.root / "stopped-inline")


@pytest.mark.slow
@pytest.mark.deployment
@MINUTES
def test_a_run_stops_when_a_machine_is_gone_and_goes_on_without_it(
    cluster: Cluster,
) -> None:  # the last: it has one left
    path, run = cluster.shared / "long.yaml", RunFolder(cluster.shared / "long")
    path.write_text(SCENARIO + "rounds: 40\n")
    simulate = [*SIMULATE, "--ray-address", cluster.address]
    process = cluster.start(*simulate, str(path), "--out", str(run.path))
    cluster.wait_for_rounds(process, run, 2)
    cluster.kill("MACHINE=2")
    _, errors = finished(process)
    assert process.returncode == 2, errors
    assert "the cluster had 2 CPUs when the run began, and now has 1: a machine is gone" in errors
    stopped = run.load_results()
    assert stopped.status == "failed" and "a machine is gone" in stopped.reason and 2 <= len(stopped.rounds) < 40

    ended = cluster.run(*simulate, "--resume", str(run.path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = run.load_results()
    assert results.status == "finished" and len(results.rounds) == 40 and results.lost_states == 0
    assert all(r.replies == 4 for r in results.rounds[len(stopped.rounds) :])
    # Until Ray had noticed, what went to the machine that was gone came back as an error.
    assert all(r.replies + r.reasons.get("error", 0) == 4 for r in results.rounds)


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process has said, once it has ended; it is killed if it does not."""
    try:
        return process.communicate(timeout=120)
    finally:
        process.kill()
