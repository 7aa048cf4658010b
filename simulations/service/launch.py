"""Becomes another command that ends when its parent does: `python launch.py PARENT MEMORY COMMAND ...`.

A script of its own: what it does must happen in the new process, and running Python code between fork and exec is not
safe in a parent with threads. It imports nothing but the standard library, and is gone after a few milliseconds.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: int, memory: int, command: list[str]) -> None:
    """Tie this process to its parent, limit its address space, and become the command.

    Args:
        parent: process id of whoever started this.
        memory: bytes of address space for it and each of its children; 0: no limit.
        command: what to become; the first is a path.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before the line above
        sys.exit("the parent process has ended")
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
