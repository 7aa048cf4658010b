"""The hub of a service: a process that is started again whenever it ends."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from fedpress.simulations.deploy import flower_processes, settings
from fedpress.simulations.deploy.children import Child
from fedpress.simulations.results.run_folder import RunFolder

AGAIN_SECONDS = 5.0
"""Seconds after its end until it is started again."""


class HubProcess:
    """The hub's process, from when there is a folder of bundles; without a command there is none.

    Args:
        chosen: Settings of the service.
        folder: Run folder, whose bundles are served.
        home: FLWR_HOME of the service.
        say: Called with each line for the user.

    Attributes:
        starts: How often the process was started.
    """

    def __init__(
        self, chosen: settings.ServerSettings, folder: RunFolder, home: Path, say: Callable[[str], None]
    ) -> None:
        self._command, self._folder, self._home, self._say = chosen.hub, folder, home, say
        self._log = Path(chosen.state) / "hub.log"
        self._child: Child | None = None
        self._next = 0.0
        self.starts = 0

    def keep(self) -> None:
        """Keep the process running."""
        now = time.monotonic()
        if not self._command or not self._folder.bundles.is_dir():  # the run creates the folder that a hub serves
            return
        if self._child is not None and (code := self._child.ended()) is not None:
            last = next((line for line in reversed(self._child.tail) if line.strip()), "it printed nothing")
            self._say(f"the hub has ended (exit code {code}): {last.strip()[-300:]}; it starts again")
            self._child, self._next = None, now + AGAIN_SECONDS
        if self._child is None and now >= self._next:
            program = shutil.which(self._command[0]) or flower_processes.command(self._command[0])
            environment = flower_processes.environment(self._home)
            self._child = Child([program, *self._command[1:]], environment, self._log)
            self.starts += 1

    def stop(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.stop()
