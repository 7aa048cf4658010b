"""The warm trainer: calls of `flwr-clientapp` reach it with their output; whoever finds none does the work alone."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fedpress.client.warm import hand_over
from fedpress.client.warm import trainer as warm_trainer


class Running(NamedTuple):
    process: subprocess.Popen[bytes]
    address: Path
    command: Path
    environment: dict[str, str]

    def call(self, *arguments: str) -> str:
        """Call the command, and return what was written until the forked process has ended, too."""
        done = subprocess.run(
            [self.command, *arguments], env=self.environment, capture_output=True, text=True, timeout=60
        )
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("warm")
    address = folder / "socket"
    alone = folder / "alone"
    alone.write_text('#!/bin/sh\necho "alone: $*"\n')
    alone.chmod(0o700)
    environment = {
        **os.environ,
        **hand_over.write_command(folder / "bin", address, str(alone), os.environ["PATH"]),
        "FLWR_HOME": str(folder),
    }
    process = subprocess.Popen([sys.executable, "-m", warm_trainer.__name__, str(address)], env=environment)
    try:
        patience = time.monotonic() + 60
        while not address.exists():
            assert process.poll() is None and time.monotonic() < patience
            time.sleep(0.05)
        yield Running(process, address, folder / "bin" / "flwr-clientapp", environment)
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.slow
def test_a_call_is_done_by_a_fork_that_writes_to_the_callers_output(running: Running) -> None:
    assert "--runtime-api-address" in running.call("--help")
    assert "one of the arguments --token --token-file is required" in running.call("--insecure")
    assert running.process.poll() is None
    assert stat.S_IMODE(running.address.stat().st_mode) == 0o600


@pytest.mark.slow
def test_what_is_no_call_is_refused_and_the_next_is_taken(running: Running) -> None:
    for data in (b"", b"no json\n", b"[1, 2]\n", b'["--help"]\n'):  # the last without file descriptors
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(running.address))
            caller.sendall(data)
            caller.shutdown(socket.SHUT_WR)
            assert caller.recv(1) == b""
    assert "--runtime-api-address" in running.call("--help")


@pytest.mark.slow
def test_a_trainer_whose_parent_is_gone_ends_and_calls_are_done_without_it(tmp_path: Path, running: Running) -> None:
    address = tmp_path / "socket"
    trainer = f"[sys.executable, '-m', '{warm_trainer.__name__}', '{address}', '--parent', str(os.getpid())]"
    start = f"subprocess.Popen({trainer}, stdout=subprocess.DEVNULL)"
    starts = f"import os, subprocess, sys; print({start}.pid)"
    parent = subprocess.run([sys.executable, "-c", starts], stdout=subprocess.PIPE, text=True, timeout=60)
    pid, patience = int(parent.stdout), time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():  # it begins, finds that it was left alone, and ends
        assert time.monotonic() < patience, os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    environment = {**running.environment, hand_over.ADDRESS: str(address)}
    done = subprocess.run([running.command, "--token", "a b"], env=environment, capture_output=True, text=True)
    assert done.stdout == "alone: --token a b\n"


def test_the_app_is_imported_without_torch_and_the_command_without_flower() -> None:
    """Flower imports the app for every message, where no trainer is."""
    code = "import sys, fedpress.client.%s; print([name for name in ('torch', 'flwr', 'numpy') if name in sys.modules])"
    seen = {}
    for module in ("app", "warm.hand_over"):
        done = subprocess.run([sys.executable, "-c", code % module], capture_output=True, text=True, timeout=60)
        seen[module] = done.stdout.strip()
    assert seen == {"app": "['flwr', 'numpy']", "warm.hand_over": "[]"}
