"""Guard process that ends a command together with its service: `python guard.py HOME MEMORY GRACE COMMAND ...`.

Standard input is a pipe from the service, which breaks when the service ends, even if it is killed. The command then
gets SIGTERM once: on a second signal Flower's processes end at once, and a SuperNode that does so has not signed off
and is refused for a minute. (The kernel's signal on a parent's death is sent once for each of the parent's threads.)
The script imports little, so that a guard takes 10 MB.
"""

import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOOK_SECONDS = 0.2


def main(home: str, memory: int, grace: float, command: list[str]) -> int:
    """Run a command and return its exit code; 128 + N where signal N has ended it, as in shells.

    Args:
        home: FLWR_HOME of the command, which identifies the service's processes.
        memory: Limit of the address space in bytes, for the command and each of its children; 0: none.
        grace: Seconds from SIGTERM to SIGKILL of the whole process group.
        command: Path of the program, and its arguments.
    """
    guard = os.getpid()

    def in_the_child() -> None:  # this process has one thread, so Python code is safe there
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # of this process, should it be killed
        if os.getppid() != guard:
            os._exit(1)
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    child: subprocess.Popen[bytes] | None = None
    asked, told = False, 0.0

    def tell() -> None:
        nonlocal asked, told
        asked = True
        if child is not None and not told:
            told = time.monotonic()
            child.terminate()

    signal.signal(signal.SIGTERM, lambda *_: tell())  # before there is a child: a signal may come at once
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env={**os.environ, "FLWR_HOME": home}, preexec_fn=in_the_child
    )
    if asked:
        tell()
    watched = [sys.stdin.fileno()]
    while (code := child.poll()) is None:
        ready, _, _ = select.select(watched, [], [], LOOK_SECONDS)
        if ready and not os.read(ready[0], 1):
            watched = []
            tell()
        if told and time.monotonic() - told > grace:
            os.killpg(0, signal.SIGKILL)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]))
