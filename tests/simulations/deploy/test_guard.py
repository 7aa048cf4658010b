"""The guard ends its command when the service goes, and has its exit code; `test_children` runs it by `Child`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fedpress.simulations.deploy import guard


def start(command: Sequence[str], grace: float = 5.0, memory: int = 0) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-IS", str(Path(guard.__file__)), "/a home", str(memory), str(grace), *command]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def test_the_exit_code_is_the_commands_and_its_home_is_marked() -> None:
    with start(shell('echo "$FLWR_HOME"; exit 7')) as process:
        assert process.stdout is not None and process.stdout.read() == "/a home\n"
        assert process.wait(timeout=10) == 7


def test_a_signal_is_a_code_as_in_shells() -> None:
    with start(shell("kill -9 $$")) as process:
        assert process.wait(timeout=10) == 128 + signal.SIGKILL


def test_a_pipe_that_breaks_ends_the_command() -> None:
    with start(shell("trap 'echo asked; exit 3' TERM; echo here; while :; do sleep 0.1; done")) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "here\n"
        process.stdin.close()
        assert process.stdout.readline() == "asked\n"
        assert process.wait(timeout=10) == 3


def test_one_that_does_not_listen_is_killed_with_its_group() -> None:
    with start(shell("trap '' TERM; echo here; while :; do sleep 0.1; done"), grace=0.3) as process:
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=10) == -signal.SIGKILL and time.monotonic() - began > 0.3


def test_memory_is_limited() -> None:
    with start([sys.executable, "-c", "bytearray(2**30)"], memory=2**29) as process:
        assert process.wait(timeout=10) == 1
