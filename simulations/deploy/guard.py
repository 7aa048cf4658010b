"""Runs a command that ends when whoever started it does: `python guard.py HOME MEMORY GRACE COMMAND ...`.

Its standard input is a pipe from the service, which breaks when the service ends, however that ends. The command is
then asked to end, once: Flower's processes take a second request for a reason to end at once, and a SuperNode that
does so has not signed off, and is refused for a minute. (The kernel's own signal on a parent's death comes once for
each of the parent's threads.) A script of its own that imports little: it takes 10 MB, and the command's place in the
list of processes is its own.
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
    """Run the command to its end, and return its exit code; as shells have it where a signal has ended it.

    Args:
        home: FLWR_HOME of the command, which marks what belongs to the service.
        memory: bytes of address space for it and each of its children; 0: no limit.
        grace: seconds from the request to end to the end by force, of all its process group.
        command: the first is a path.
    """
    guard = os.getpid()

    def in_the_child() -> None:  # this process has one thread, so Python code is safe there
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # of this process, should it be killed
        if os.getppid() != guard:
            os._exit(1)
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env={**os.environ, "FLWR_HOME": home}, preexec_fn=in_the_child
    )
    told = 0.0

    def tell() -> None:
        nonlocal told
        if not told:
            told = time.monotonic()
            child.terminate()

    signal.signal(signal.SIGTERM, lambda *_: tell())
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
