"""Supervision of long-running child processes: logged, ended with their parent, and found again after a crash.

All descendants of a child inherit its environment, in which `FLWR_HOME` is the service's own folder. This identifies
the processes of a service, also those that a killed service has left behind.
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
"""Seconds from SIGTERM to SIGKILL; Flower's processes take up to 5 to end."""
FORCE = 3.0
"""Seconds after `GRACE` in which the guard itself must end."""
FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0
"""Back-off between attempts, in seconds: the first wait, and the longest."""
SAME_FAILURES, SOON_SECONDS = 3, 60.0
"""Number of consecutive attempts, each shorter than this and with the same error, after which the service gives up."""
LOG_BYTES = 5_000_000
LOOK_SECONDS = 0.2
_GUARD = Path(__file__).with_name("guard.py")


class ServiceError(FedpressError):
    """A service cannot start, or cannot go on."""


class Child:
    """Child process that ends by itself, by `stop`, or when this process ends, even if that is killed.

    Args:
        command: Path of the program, and its arguments.
        environment: Environment of the command; its FLWR_HOME identifies the service.
        log: File for the command's output; rotated at 5 MB, with one older file kept.
        memory: Limit of the address space in bytes, for the command and each of its children; 0: none.
        on_line: Called with every line of output, from another thread.

    Attributes:
        tail: The last 200 lines of output.
        began: Monotonic time of the start.
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
        # A file, not a pipe: a pipe would break with this process, and Flower's processes then fail to sign off.
        with log.open("ab") as output:
            self._from = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-IS", str(_GUARD), environment["FLWR_HOME"], str(memory), str(GRACE), *command],
                env={name: value for name, value in environment.items() if name != "FLWR_HOME"},
                stdin=subprocess.PIPE,  # breaks when this process ends, which the guard sees
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches only the service, which stops its children
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
                    os.truncate(self._log, 0)  # the command appends to it
                    log.seek(0)
                time.sleep(LOOK_SECONDS)

    def ended(self) -> int | None:
        """Return the exit code, or None while the command runs. With a code, `tail` is complete."""
        code = self._process.poll()
        if code is not None:
            self._close()
        return code

    def stop(self) -> None:
        """Send SIGTERM, after a while SIGKILL to the whole process group; return once the command has ended."""
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
    """Return the command of every other process with this FLWR_HOME, by process id; only on Linux, else nothing."""
    mark, commands = f"FLWR_HOME={home}".encode(), {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0") and int(process.name) != os.getpid():
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if command:  # a zombie has none
                    commands[int(process.name)] = command
    return commands


def end_all(home: Path, *, name: str = "", wait: float = 2.0) -> int:
    """End the processes of a service.

    Args:
        home: FLWR_HOME of the service.
        name: Part of the command of the processes to end; empty: all.
        wait: Seconds before the first signal, for processes that are ending already: on a second signal Flower's
            processes end at once, and a SuperNode then does not sign off.

    Returns:
        Number of processes at the beginning.
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
    """Return a process's resident memory in bytes; 0 where it is not known."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder's lock, which the system releases when the process ends.

    Args:
        folder: Folder of the lock file.
        what: Kind of service, for the error: "a client".

    Raises:
        ServiceError: Another process holds it.
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
    """Detector of crash loops: consecutive attempts that fail early, and for the same reason.

    Args:
        most: Number of failures that are a loop.
        soon: Seconds; an attempt that lasts longer resets the count.
    """

    def __init__(self, most: int, soon: float) -> None:
        self._most, self._soon = most, soon
        self._seen: list[str] = []

    def hopeless(self, reason: str, lasted: float, *, got_on: bool = False) -> bool:
        """Record a failure; return whether it completes a loop.

        >>> failures = Failures(3, 60)
        >>> [failures.hopeless("no such file", lasted) for lasted in (10, 20, 15)]
        [False, False, True]
        >>> failures.hopeless("killed", 10), failures.hopeless("no such file", 10)
        (False, False)

        Args:
            reason: Error text, compared with that of the failure before.
            lasted: Duration of the attempt in seconds.
            got_on: Whether the attempt made progress, which resets the count, too.
        """
        if got_on or lasted > self._soon or (self._seen and self._seen[-1] != reason):
            self._seen = []
        self._seen.append(reason)
        return len(self._seen) >= self._most and not got_on
