"""The SuperLink of a service: a process that is started again whenever it ends."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fedpress.client.backoff import Backoff
from fedpress.simulations.deploy import (
    admission,
    children,
    daemon,
    flower_processes,
    keys,
    operators,
    run_app,
    settings,
    superlink,
)
from fedpress.simulations.deploy.children import (
    FIRST_WAIT,
    LONGEST_WAIT,
    SAME_FAILURES,
    SOON_SECONDS,
    Child,
    Failures,
    ServiceError,
)

LEAST_MESSAGE = 256 << 20
"""Bytes that a request of a client may have, unless its model or the settings say more or less."""
START_SECONDS = 120.0
"""Time limit for a SuperLink to listen."""


class LinkProcess:
    """The SuperLink's process; where the settings name one that runs elsewhere, there is none.

    Args:
        chosen: Settings of the service.
        folder: Its keys.
        home: FLWR_HOME of the service.
        say: Called with each line for the user.
        lost: Called when the process has ended.

    Attributes:
        token: Token of the operator.
        starts: How often the process was started.
    """

    def __init__(
        self,
        chosen: settings.ServerSettings,
        folder: keys.Folder,
        home: Path,
        say: Callable[[str], None],
        lost: Callable[[], None],
    ) -> None:
        self._chosen, self._keys, self._home, self._say, self._lost = chosen, folder, home, say, lost
        self._state = Path(chosen.state)
        self._child: Child | None = None
        self._failures = Failures(SAME_FAILURES, SOON_SECONDS)
        self._wait, self._next = Backoff(FIRST_WAIT, LONGEST_WAIT), 0.0
        self.token, self.starts = "", 0

    @property
    def address(self) -> str:
        """Address of the SuperLink for this machine's own processes."""
        if self._chosen.superlink is not None:
            return self._chosen.superlink
        host, port = settings.host_and_port(self._chosen.listen)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def runs(self) -> bool:
        """Whether the process runs."""
        return self._child is not None and self._child.ended() is None

    def keep(self, *, connected: bool) -> bool:
        """Keep the process running; return whether the SuperLink listens.

        Args:
            connected: Whether it was asked something already, so that it does.

        Raises:
            ServiceError: It ends again and again for the same reason.
        """
        if self._chosen.superlink is not None:
            return True
        now = time.monotonic()
        if self._child is not None and (code := self._child.ended()) is not None:
            last = next((line for line in reversed(self._child.tail) if line.strip()), "it printed nothing")
            children.end_all(self._home)
            began, self._child = self._child.began, None
            self._lost()
            connected = False
            wait = self._wait.wait()
            self._next = now + wait
            reason = f"the SuperLink has ended (exit code {code}): {last.strip()[-300:]}"
            if self._failures.hopeless(reason, now - began):
                raise ServiceError(
                    f"{reason}\nThat was {SAME_FAILURES} times, each within a minute; its log is {self._log}"
                )
            self._say(f"{reason}; it starts again in {wait:.0f} s")
        if self._child is None and now >= self._next:
            self._start()
        if self._child is None:
            return False
        if not connected and daemon.handshake(self.address, self._keys.ca):
            if now - self._child.began > START_SECONDS:
                self._child.stop()
            return False
        return True

    def listens(self) -> None:
        """Take note that the SuperLink answers, so that the next start after an end is soon."""
        self._wait.reset()

    def stop(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.stop()

    @property
    def _log(self) -> Path:
        return self._state / "superlink.log"

    def _start(self) -> None:
        host, port = settings.host_and_port(self._chosen.listen)
        operators.flower_home(self._state / "operator", self.address, self._keys.ca, self.token)
        secret = operators.new_secret(self._state / "superexec.secret")
        self.starts += 1
        environment = flower_processes.environment(self._home)
        self._child = Child(
            [
                sys.executable, "-m", superlink.__name__, "--host", host, "--port", str(port),
                "--ssl-certfile", str(self._keys.server), "--ssl-keyfile", str(self._keys.server_key),
                "--ssl-ca-certfile", str(self._keys.ca), "--enable-supernode-auth",
                "--database", str(self._state / "superlink.db"), "--disable-runtime-dependency-installation",
                "--isolation", "process", "--superexec-auth-secret-file", str(secret),
            ],
            environment
            | {
                superlink.OPERATORS: " ".join(self._chosen.operators),
                operators.TOKEN: self.token,
                superlink.MESSAGE_BYTES: str(self.message_bytes()),
            },
            self._log,
            on_line=self._read,
        )  # fmt: skip

    def message_bytes(self) -> int:
        """Return the largest request of a client that is taken, in bytes.

        Raises:
            SettingsError: It is set to less than the model needs.
        """
        try:
            models = json.loads((self._state / run_app.FORECAST).read_bytes())["models"]
            needed = max(int(model["request_bytes"]) for model in models)
        except (OSError, ValueError, KeyError, TypeError):  # an app of the user's own, whose model nobody knows here
            needed = 0
        if self._chosen.message_mib is None:
            return max(LEAST_MESSAGE, needed)
        most = int(self._chosen.message_mib * 2**20)
        if most < needed:
            raise settings.SettingsError(
                f"message_mib: {self._chosen.message_mib:g}; a reply of this model's clients may take a request of"
                f" {needed / 2**20:.3g} MiB, and would be refused; leave it out, or allow as much"
            )
        return most

    def _read(self, line: str) -> None:
        """Report the messages of the SuperLink's admission; called from another thread."""
        if line.startswith(admission.SAYS):
            self._say(f"warning: {line.removeprefix(admission.SAYS)}")
