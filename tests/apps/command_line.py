"""The command line, as tests call it: in a process of its own, or in this one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from click.testing import Result
from typer.testing import CliRunner

from fedpress.simulations.__main__ import main

COMMAND = (sys.executable, "-m", "fedpress.simulations")


class ShortRun(NamedTuple):
    """A short run of what `fedpress init` writes, made once for all tests, which must leave it as it is.

    Attributes:
        folder: Holds `study/`, the run folder `run/`, `figures.json`, and the key pair `key.pem`, `key.pub.pem` that
            signed its bundles.
        stdout: What `fedpress simulate` printed.
        stderr: Its errors.
    """

    folder: Path
    stdout: str
    stderr: str

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "run"

    @property
    def bundle(self) -> Path:
        """A student's bundle."""
        return next(path for path in sorted((self.run / "bundles").rglob("*")) if path.is_file())


def invoke(*arguments: object) -> Result:
    """Call a command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def fedpress(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Call a command in a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "100"},
    )


def without(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Call a command in an installation that lacks a module, as far as imports go."""
    code = (
        f"import sys; sys.modules[{module!r}] = None\nfrom fedpress.simulations.__main__ import main; main({arguments})"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=cwd)
