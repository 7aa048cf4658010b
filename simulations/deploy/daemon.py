"""`fedpress client`: daemon that keeps a Flower SuperNode running on a device, within the hours and conditions set.

The daemon itself is light and imports neither torch nor Flower: those come with the SuperNode and end with it.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from fedpress.client import workloads
from fedpress.client.backoff import Backoff
from fedpress.client.download import certificates
from fedpress.client.warm import hand_over
from fedpress.simulations.deploy import children, flower_processes, keys, monitor, settings, supernode
from fedpress.simulations.deploy.children import Child

FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0
"""Back-off between attempts, in seconds: the first wait, and the longest."""
CHECK_SECONDS, CHECK_LIMIT = 30.0, 20.0
"""Interval and time limit of the command of `only_if`, in seconds."""
FORGOTTEN_SECONDS = 70.0
"""Seconds without heartbeats after which a SuperLink considers a node gone."""
RELOAD_SECONDS = 6 * 3600.0
"""Seconds after which a warm trainer reads the data again."""
LONGEST_SOCKET = 100
"""Most bytes of the path of a Unix socket; the kernel's limit is 108."""
AHEAD_SECONDS, BEHIND_SECONDS = 5.0, 305.0
"""Tolerance of a SuperLink for a node's clock: each request is signed with the time."""
ROUGH_SECONDS = 3.0
"""Error of the measured clock difference: the Date header has whole seconds."""
SOUND_SECONDS = 30.0
"""Seconds of connection after which an attempt counts as a success, which resets the back-off."""

_PROCESSES = {
    supernode.__name__: "supernode",
    "flower-superexec": "superexec",
    "flwr-serverapp": "serverapp",
    "flwr-clientapp": "clientapp",
    "fedpress.client.warm.trainer": "trainer",
    "deploy.superlink": "superlink",
}


class EdgeDaemon:
    """The daemon.

    Args:
        chosen: Its settings.
        say: Called with each line for the user.
    """

    def __init__(self, chosen: settings.ClientSettings, say: Callable[[str], None]) -> None:
        self._chosen = chosen
        self._say = say
        self._state = Path(chosen.state)
        self._home = self._state / "flwr"
        self._stopping = threading.Event()
        self._backoff = Backoff(FIRST_WAIT, LONGEST_WAIT)
        self._child: Child | None = None
        self._trainer: Child | None = None
        self._node: int | None = None
        self._connected_at: float | None = None
        self._round: int | None = None
        self._starts = self._answers = 0
        self._next_try = self._next_check = 0.0
        self._hook_reason = ""  # why `only_if` forbids to take part; empty: it does not
        self._refused_since: float | None = None
        self._ahead: float | None = None  # seconds by which the clock was last reported to be wrong
        self._refused_work = ""  # reason of the last refusal of what the server wants run
        self._transfer = ""  # warning about the last message, if it did not get through
        self._status, self._reason = "starting", ""

    def stop(self) -> None:
        """Make `run` return soon; safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Keep a SuperNode running until `stop`.

        Raises:
            ServiceError: Another daemon uses this state folder, or the metrics' port is taken.
            KeysError: The node's key is missing, or not of the kind that Flower needs.
            SettingsError: The folder of the device's own data, or its copy of `init` or `base`, does not exist.
        """
        chosen = self._chosen
        for warning in keys.node_key(Path(chosen.key)):
            self._say(f"warning: {warning}")
        if chosen.data is not None and not Path(chosen.data).is_dir():
            raise settings.SettingsError(f"data: there is no folder {chosen.data}")
        if chosen.init is not None and not Path(chosen.init).exists():
            raise settings.SettingsError(f"init: there is no file or folder {chosen.init}")
        if chosen.base is not None and not Path(chosen.base).exists():
            raise settings.SettingsError(f"base: there is no file or folder {chosen.base}")
        for folder in (self._state, self._home):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        flower_processes.command("flower-supernode")  # raises where Flower is missing; `supernode` replaces the command
        with ExitStack() as stack:
            stack.enter_context(children.locked(self._state, "a client"))
            stack.enter_context(monitor.served(chosen.metrics, self.figures, self.health))
            if children.end_all(self._home, wait=children.GRACE):
                self._say("stopped what an earlier client had left running")
            self._say(f"client of {chosen.superlink}, state in {self._state}")
            try:
                while not self._stopping.is_set():
                    self._step()
                    self._stopping.wait(0.5)
            finally:
                self._end_child()
                self._say("stopped")

    def _step(self) -> None:
        if closed := self._closed():
            if self._child is not None:
                self._end_child()
            self._set("paused", closed)
            self._next_try = 0.0
        elif self._child is None:
            if time.monotonic() >= self._next_try:
                self._start()
        elif self._child.ended() is not None:
            self._ended(self._child)
        elif self._trainer is not None and self._trainer.ended() is not None:
            self._say("the warm trainer has ended; it starts again")  # until then each message starts a process
            self._trainer = self._new_trainer()

    def _closed(self) -> str:
        """Return why the client does not take part now; empty: it does."""
        chosen, now = self._chosen, time.monotonic()
        if chosen.hours and not settings.open_at(chosen.hours, datetime.now().time()):
            return f"outside of {chosen.hours}"
        if chosen.only_if and now >= self._next_check:
            self._next_check = now + CHECK_SECONDS
            self._hook_reason = _hook(chosen.only_if)
        return self._hook_reason

    def _start(self) -> None:
        chosen = self._chosen
        if problem := handshake(chosen.superlink, Path(chosen.ca)):
            self._later("waiting", problem)
            return
        if problem := self._clock():
            self._later("refused", problem)
            return
        if self._status in ("starting", "paused"):
            self._set("connecting", "")
        self._starts += 1
        variables = environment(chosen, self._home)
        if chosen.warm and len(os.fsencode(self._socket)) <= LONGEST_SOCKET:
            self._trainer = self._new_trainer()
            clientapp = flower_processes.command("flwr-clientapp")
            variables |= hand_over.write_command(self._state / "bin", self._socket, clientapp, variables["PATH"])
        self._node = self._connected_at = None
        self._child = Child(
            [
                *(sys.executable, "-m", supernode.__name__),
                *("--superlink", chosen.superlink, "--root-certificates", chosen.ca),
                *("--auth-supernode-private-key", chosen.key, "--port", str(flower_processes.free_port())),
                *("--node-config", node_config(chosen)),
            ],
            variables,
            self._state / "supernode.log",
            memory=int((chosen.memory_gib or 0) * 2**30),
            on_line=self._read,
        )

    def _clock(self) -> str:
        """Return why the server would refuse requests signed with this device's clock; empty: it would not.

        The check is made here because a SuperNode that is refused for its clock ends without naming the reason.
        """
        ahead = clock_ahead(self._chosen.superlink, Path(self._chosen.ca))
        if ahead is None or -BEHIND_SECONDS - ROUGH_SECONDS < ahead < AHEAD_SECONDS + ROUGH_SECONDS:
            self._ahead = None
            return ""
        if self._ahead is None or abs(ahead - self._ahead) > 2 * ROUGH_SECONDS:  # else the same text is kept
            self._ahead = ahead
        return (
            f"the clock of this device is {abs(self._ahead):,.0f} s {'ahead of' if self._ahead > 0 else 'behind'} the"
            f" server's, and {AHEAD_SECONDS:.0f} s ahead or {BEHIND_SECONDS:.0f} s behind are accepted;"
            " set the one that is wrong, best by NTP (timedatectl set-ntp true)"
        )

    @property
    def _socket(self) -> Path:
        return self._state / "trainer"

    def _new_trainer(self) -> Child:
        """Start a process that is forked for every message (`fedpress.client.warm.trainer`)."""
        chosen = self._chosen
        return Child(
            [
                sys.executable,
                *("-m", "fedpress.client.warm.trainer", str(self._socket)),
                *("--threads", str(chosen.threads or 0), "--reload-after", str(RELOAD_SECONDS)),
            ],
            environment(chosen, self._home),
            self._state / "trainer.log",
            memory=int((chosen.memory_gib or 0) * 2**30),
        )

    def _read(self, line: str) -> None:
        """Read status, round and failures from a line of the SuperNode's log; called from another thread."""
        if match := re.search(r"SuperNode ID: (\d+)", line):
            self._node, self._connected_at = int(match[1]), time.monotonic()
            self._refused_since = None
            self._set("connected", f"node {match[1]}")
        elif self._node is not None and "Connection attempt failed" in line:
            self._set("waiting", "the connection to the server is lost", "; it goes on trying")
        elif self._node is not None and "Connection successful" in line:
            self._set("connected", f"node {self._node}")
        elif match := re.search(r"\[RUN \d+, ROUND (\d+)\]", line):
            self._round = int(match[1])
        elif "Sent successfully" in line:
            self._answers += 1
            self._transfer = ""
        elif match := re.search(rf"(?:{workloads.WorkloadRefused.__name__}|{supernode.REFUSED}): (.*)", line):
            before, self._refused_work = self._refused_work, match[1]
            if self._refused_work != before:
                self._say(f"warning: refused to work: {match[1]}")
        elif match := re.search(rf"Failed to (send|receive) message \S+: (?!{supernode.RUN_ENDED})(.*)", line):
            before, self._transfer = self._transfer, _transfer(match[1], match[2])
            if self._transfer != before:
                self._say(f"warning: {self._transfer}")

    def _ended(self, child: Child) -> None:
        """Report why the SuperNode has ended by itself, and schedule the next attempt."""
        children.end_all(self._home)
        self._child = self._trainer = None
        if self._connected_at is not None and time.monotonic() - self._connected_at > SOUND_SECONDS:
            self._backoff.reset()
        text = "\n".join(child.tail)
        code = re.search(r"Exit Code: (\d+)", text)
        if code and code[1] == "305" and "Failed to activate" in text:
            now = time.monotonic()
            self._refused_since = self._refused_since or now
            key = f"its key ({Path(self._chosen.key).name})"
            if now - self._refused_since < FORGOTTEN_SECONDS:
                why = (
                    f"{key} is not registered there, or the server has not yet noticed that an earlier process of this"
                    " node is gone, which takes it a minute"
                )
            else:
                why = f"{key} is not registered there, or another machine is connected with it"
            self._later("refused", f"the server does not let this node in: {why}")
        elif self._connected_at is None and child.ended() == 0:
            self._later(
                "refused", "the server does not accept this node's signature; is the clock of this device right?"
            )
        else:
            last = next((line for line in reversed(child.tail) if line.strip()), "it printed nothing")
            self._later("waiting", f"the SuperNode has ended (exit code {child.ended()}): {last.strip()[-300:]}")

    def _later(self, status: str, reason: str) -> None:
        wait = self._backoff.wait()
        self._next_try = time.monotonic() + wait
        self._set(status, reason, "; it goes on trying")

    def _set(self, status: str, reason: str, more: str = "") -> None:
        """Change the status, and report it if it differs."""
        if (status, reason) != (self._status, self._reason):
            self._status, self._reason = status, reason
            self._say(status + (f": {reason}{more}" if reason else ""))

    def _end_child(self) -> None:
        self._node = None  # so that the log of the shutdown is not reported
        for child in (self._child, self._trainer):
            if child is not None:
                child.stop()
        self._child = self._trainer = None
        children.end_all(self._home)

    def figures(self) -> Iterator[monitor.ServiceFigure]:
        """Yield the metrics for Prometheus."""
        well, _ = self.health()
        states = ("starting", "connecting", "connected", "waiting", "refused", "paused")
        yield monitor.ServiceFigure(
            "client_state", "1 for the state that it is in.", {(s,): s == self._status for s in states}, ("state",)
        )
        yield monitor.figure("client_healthy", "1 while connected, or not to take part.", well)
        yield monitor.figure("client_round", "Round of the last order.", self._round)
        yield monitor.figure("client_answers", "Messages answered.", self._answers, total=True)
        yield monitor.figure("client_starts", "How often a SuperNode was started.", self._starts, total=True)
        yield memory(self._home)

    def health(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether all is well, and state, reason, node and round."""
        facts = {"state": self._status, "reason": self._reason, "node": self._node, "round": self._round}
        return self._status in ("connected", "paused", "starting", "connecting"), facts


def memory(home: Path) -> monitor.ServiceFigure:
    """Return the metric of the resident memory of a service's processes, by command."""
    used: dict[tuple[str, ...], float] = {("daemon",): children.memory_of(os.getpid())}
    for pid, command in children.belonging_to(home).items():
        name = next((name for mark, name in _PROCESSES.items() if mark in command), "other")
        used[(name,)] = used.get((name,), 0.0) + children.memory_of(pid)
    return monitor.ServiceFigure("memory_bytes", "Resident memory, by process.", used, ("process",))


def environment(chosen: settings.ClientSettings, home: Path) -> dict[str, str]:
    """Return the environment of a SuperNode.

    Args:
        chosen: Settings of the client.
        home: FLWR_HOME.
    """
    variables = flower_processes.environment(home)
    if chosen.threads is not None:
        variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(chosen.threads))
    return variables


def node_config(chosen: settings.ClientSettings) -> str:
    """Return the node's configuration for Flower; `client/state/stores.py` and `client/app.py` document the keys."""
    folder = Path(chosen.state)
    values = {
        "state-folder": folder / "rounds",
        "download-folder": folder / "downloads",
        "data-folder": chosen.data,
        "initial-weights": chosen.init,
        "base-weights": chosen.base,
        "base-folder": folder / "bases",
        "tier": chosen.tier,
        "probe": chosen.probe,
        workloads.KEY: " ".join(chosen.workloads),
    }
    pairs = [f"{key}='{value}'" for key, value in values.items() if value is not None]
    return " ".join(pairs if chosen.partition is None else [*pairs, f"partition-id={chosen.partition}"])


def handshake(address: str, ca: Path) -> str:
    """Try a TLS handshake with a server, since Flower's own process retries without naming a reason.

    Args:
        address: HOST:PORT.
        ca: Certificate of the server's authority, PEM.

    Returns:
        Reason of the failure; empty: the handshake succeeded.
    """
    host, port = settings.host_and_port(address)
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as error:
        return f"cannot use the authority's certificate {ca}: {getattr(error, 'strerror', None) or error}"
    try:
        with (
            socket.create_connection((host, port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return f"the certificate of the server at {address} is not trusted: {certificates.reason(error, host, ca)}"
    except ssl.SSLError as error:
        return f"the server at {address} does not speak TLS as expected: {error.reason or error}"
    except OSError as error:
        return f"cannot reach the server at {address}: {error.strerror or error}"


def clock_ahead(address: str, ca: Path) -> float | None:
    """Return the seconds by which this device's clock is ahead of a server's, to a second or two.

    Args:
        address: HOST:PORT.
        ca: Certificate of the server's authority, PEM.

    Returns:
        Seconds, negative where it is behind; None: the server did not answer with a date.
    """
    host, port = settings.host_and_port(address)
    with suppress(OSError, http.client.HTTPException, ValueError, TypeError):
        context = ssl.create_default_context(cafile=str(ca))
        with closing(http.client.HTTPSConnection(host, port, timeout=10, context=context)) as connection:
            connection.request("HEAD", "/")
            date = connection.getresponse().headers["Date"]
        return time.time() - parsedate_to_datetime(date).timestamp()
    return None


def _transfer(way: str, error: str) -> str:
    """Return the warning for a message that did not get through, from the error in Flower's log."""
    if "413 Request" in error:
        return "the server refuses an answer of this device: it is larger than `message_mib` in the server's settings"
    return f"could not {way} a message: {error}"


def _hook(command: str) -> str:
    """Run the command of `only_if`; return why the client must not take part, or an empty text."""
    with suppress(subprocess.TimeoutExpired):
        ended = subprocess.run(
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=CHECK_LIMIT,
        )
        return f"`{command}` exits with {ended.returncode}" if ended.returncode else ""
    return f"`{command}` took longer than {CHECK_LIMIT:.0f} s"
