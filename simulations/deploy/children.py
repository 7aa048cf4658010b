"""Long-running commands as children: logged, ended with their parent, and found again after a crash.

What a child starts has the child's environment, and there `FLWR_HOME` is the service's own folder. So everything that
belongs to a service can be told from all else on the machine, also what a killed one has left behind.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fedpress.compression.errors import FedpressError

GRACE = 8.0
"""Seconds from a polite request to end to the end by force; Flower's processes take up to 5."""
FORCE = 3.0
"""Seconds from the second request to the end by force."""
LOG_BYTES = 5_000_000
LOOK_SECONDS = 0.2
_GUARD = Path(__file__).with_name("guard.py")


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
        # A file and no pipe: a pipe breaks with this process, and Flower's then fail to sign off.
        with log.open("ab") as output:
            self._from = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-IS", str(_GUARD), environment["FLWR_HOME"], str(memory), str(GRACE), *command],
                env={name: value for name, value in environment.items() if name != "FLWR_HOME"},
                stdin=subprocess.PIPE,  # it breaks with this process
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is for the service, which stops them in order
            )
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    def _follow(self) -> None:
        rest = b""
        with self._log.open("rb") as log:
            log.seek(self._from)
            while True:
                ended = self._process.poll() is not None
                *lines, rest = (rest + log.read()).split(b"\n")
                for raw in lines:
                    line = raw.decode(errors="replace").rstrip()
                    self.tail.append(line)
                    self._on_line(line)
                if ended:
                    return
                if log.tell() > LOG_BYTES:
                    shutil.copyfile(self._log, self._log.with_name(self._log.name + ".1"))
                    os.truncate(self._log, 0)  # the command goes on: it appends
                    log.seek(0)
                time.sleep(LOOK_SECONDS)

    def ended(self) -> int | None:
        """Return its exit code, or None while it runs. What it printed is in `tail` by then."""
        code = self._process.poll()
        if code is not None:
            self._close()
        return code

    def stop(self) -> None:
        """Ask it to end, and make it end if it takes too long; return when it has."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=GRACE + FORCE)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._close()

    def _close(self) -> None:
        self._reader.join()
        assert self._process.stdin is not None
        self._process.stdin.close()


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


def end_all(home: Path, *, name: str = "", wait: float = 2.0) -> int:
    """End what belongs to a home and has `name` in its command; return how many there were.

    Args:
        home: the FLWR_HOME of the service.
        name: part of the command; empty: all.
        wait: seconds to leave to those that have been told to end already, or whose parents have: Flower's processes
            take a second signal for a reason to end at once, and a SuperNode then does not sign off.
    """
    began, told, first = time.monotonic(), set(), -1
    while left := [pid for pid, command in belonging_to(home).items() if name in command]:
        first = len(left) if first < 0 else first
        waited = time.monotonic() - began
        for pid in left:
            with suppress(ProcessLookupError):
                if waited > wait + FORCE:
                    os.kill(pid, signal.SIGKILL)
                elif waited >= wait and pid not in told:
                    os.kill(pid, signal.SIGTERM)
                    told.add(pid)
        time.sleep(0.1)
    return max(first, 0)


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


class Failures:
    """Tells a loop of crashes: attempts in a row that fail soon, and for the same reason.

    Args:
        most: so many are a loop.
        soon: seconds; an attempt that lasts longer begins the count anew.
    """

    def __init__(self, most: int, soon: float) -> None:
        self._most, self._soon = most, soon
        self._seen: list[str] = []

    def hopeless(self, reason: str, lasted: float, *, got_on: bool = False) -> bool:
        """Enter a failure; return whether it closes a loop.

        >>> failures = Failures(3, 60)
        >>> [failures.hopeless("no such file", lasted) for lasted in (10, 20, 15)]
        [False, False, True]
        >>> failures.hopeless("killed", 10), failures.hopeless("no such file", 10)
        (False, False)

        Args:
            reason: in words.
            lasted: seconds that the attempt took.
            got_on: whether the attempt achieved something; it then begins the count anew, too.
        """
        if got_on or lasted > self._soon or (self._seen and self._seen[-1] != reason):
            self._seen = []
        self._seen.append(reason)
        return len(self._seen) >= self._most and not got_on
