"""Commands of fedpress as processes, for tests of the service."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from fedpress.simulations.deploy import children

PATIENCE = 240.0
"""Seconds for one step, on a machine that is busy with other tests."""


class Service:
    """A command of fedpress as a process whose output is kept.

    Args:
        folder: where it runs.
        arguments: of the command.
        name: of the file for its output.
        changes: in its environment.
        within: a command that starts it.
    """

    COMMAND = (sys.executable, "-m", "fedpress.simulations")

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        name: str,
        changes: Mapping[str, str] = MappingProxyType({}),
        within: Sequence[str] = (),
    ) -> None:
        self.log = folder / f"{name}.out"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*within, *self.COMMAND, *arguments],
                cwd=folder,
                env={**os.environ, **changes},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        """What it has said."""
        return self.log.read_text(encoding="utf-8")

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(signum)
        return self.process.wait(timeout=60)


def fedpress(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*Service.COMMAND, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def until(what: str, true: Callable[[], object], *services: Service) -> None:
    """Wait; what the services have said is in the error if it takes too long, or if one of them ends."""
    patience = time.monotonic() + PATIENCE
    while not true():
        said = "\n".join(f"--- {service.log.name}\n{service.text}" for service in services)
        assert time.monotonic() < patience, f"waited in vain until {what}\n{said}"
        assert all(service.process.poll() is None for service in services), f"one ended; waited until {what}\n{said}"
        time.sleep(0.1)


def process(home: Path, name: str) -> int | None:
    """The id of a process of a service."""
    return next((pid for pid, command in children.belonging_to(home).items() if name in command), None)
