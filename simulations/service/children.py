"""Long-running commands as children: logged, ended with their parent, and found again after a crash.

What a child starts has the child's environment, and there `FLWR_HOME` is the service's own folder. So everything that
belongs to a service can be told from all else on the machine, also what a killed one has left behind.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

from fedpress.compression.errors import FedpressError

GRACE = 8.0
"""Seconds from a polite request to end to the end by force; Flower's processes take up to 5."""
LOG_BYTES = 5_000_000
_LAUNCHER = Path(__file__).with_name("launch.py")


class ServiceError(FedpressError):
    """A service cannot start, or cannot go on."""


class Child:
    """A command that runs until it ends or is stopped; it is told to end when this process does, however that ends.

    Args:
        command: the first is a path.
        environment: of the command; its FLWR_HOME marks what belongs to this service.
        log: gets what the command prints; at 5 MB it begins anew, and the one before is kept.
        memory: bytes of address space for it and each of its children; 0: no limit.
        on_line: called with every line that it prints, from another thread.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        memory: int = 0,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.tail: deque[str] = deque(maxlen=200)
        self._on_line = on_line
        self._log = log
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_LAUNCHER), str(os.getpid()), str(memory), *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal is for the service, which stops its children in order
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        keeper = RotatingFileHandler(self._log, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
        assert self._process.stdout is not None
        try:
            for raw in self._process.stdout:
                line = raw.decode(errors="replace").rstrip()
                self.tail.append(line)
                with suppress(Exception):  # a full disk must not block the command
                    keeper.emit(logging.LogRecord("child", logging.INFO, "", 0, line.replace("%", "%%"), None, None))
                self._on_line(line)
        finally:
            keeper.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ended(self) -> int | None:
        """Return its exit code, or None while it runs. What it printed is in `tail` by then."""
        code = self._process.poll()
        if code is not None:
            self._reader.join(timeout=1.0)  # its own children may hold the pipe open a little longer
        return code

    def stop(self, grace: float = GRACE) -> None:
        """Ask it to end, and after `grace` seconds do not ask any more; its whole process group is gone then."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=grace)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(timeout=1.0)


def belonging_to(home: Path) -> dict[int, str]:
    """Return the processes with this FLWR_HOME, but this one: their commands by process id. Empty but on Linux."""
    mark, found = f"FLWR_HOME={home}".encode(), {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0") and int(process.name) != os.getpid():
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if command:  # none: it has ended, and waits to be taken note of
                    found[int(process.name)] = command
    return found


def end_all(home: Path, *, name: str = "", grace: float = GRACE) -> int:
    """End what belongs to a home and has `name` in its command; return how many there were."""
    first = [pid for pid, command in belonging_to(home).items() if name in command]
    patience = time.monotonic() + grace
    signalled: set[int] = set()
    while left := [pid for pid, command in belonging_to(home).items() if name in command]:
        late = time.monotonic() > patience
        for pid in left:
            if late or pid not in signalled:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                signalled.add(pid)
        time.sleep(0.1)
    return len(first)


def memory_of(pid: int) -> int:
    """Return a process's resident memory in bytes; 0 where that cannot be told."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process, however it ends.

    Raises:
        ServiceError: another process holds it.
    """
    path = folder / "lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ServiceError(
                f"{what} with the state folder {folder} is running already (process {holder}); stop it first, or give"
                " this one a `state` of its own"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


class Backoff:
    """Waiting times that double up to a limit, each drawn between half and whole: a fleet must not come all at once.

    Args:
        first: seconds of the first wait, at most.
        most: seconds that no wait exceeds.
        draw: for the randomness.
    """

    def __init__(self, first: float, most: float, draw: random.Random | None = None) -> None:
        self._first, self._most = first, most
        self._draw = draw or random.Random()
        self._next = first

    def wait(self) -> float:
        """Return how long to wait now."""
        limit, self._next = self._next, min(self._most, 2 * self._next)
        return limit * self._draw.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._next = self._first


class Failures:
    """Tells a loop of crashes: the same reason too often within a short time.

    Args:
        most: so many are a loop.
        within: seconds.
    """

    def __init__(self, most: int, within: float) -> None:
        self._most, self._within = most, within
        self._seen: deque[tuple[float, str]] = deque(maxlen=most)

    def hopeless(self, reason: str, now: float) -> bool:
        """Enter a failure; return whether it closes a loop.

        >>> failures = Failures(3, 60)
        >>> [failures.hopeless("no such file", now) for now in (0, 20, 40)]
        [False, False, True]
        >>> failures.hopeless("killed", 41), failures.hopeless("no such file", 42)
        (False, False)
        """
        self._seen.append((now, reason))
        return (
            len(self._seen) == self._most
            and now - self._seen[0][0] <= self._within
            and len({text for _, text in self._seen}) == 1
        )
