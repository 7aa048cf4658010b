"""Stand-in for `flwr-clientapp`, which Flower starts for every message: passes the call to the warm trainer.

Run by path, with the standard library alone, so that it takes milliseconds. Where no trainer answers, it executes the
real command.
"""

import json
import os
import shlex
import socket
import sys
from pathlib import Path

ADDRESS, COMMAND = "FEDPRESS_TRAINER", "FEDPRESS_CLIENTAPP"
"""Environment variables: the trainer's Unix socket, and the path of the real `flwr-clientapp`."""
TAKEN = b"+"
"""The trainer's answer to a call that it has taken."""
ANSWER_SECONDS = 20.0
"""Limit of each step of a call; after it the caller does the work itself."""


def hand_over(address: str, arguments: list[str]) -> bool:
    """Send arguments, standard output and standard error to the trainer, and return whether it has taken them.

    Args:
        address: Path of the trainer's Unix socket.
        arguments: Arguments of `flwr-clientapp`.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trainer:
            trainer.settimeout(ANSWER_SECONDS)
            trainer.connect(address)
            socket.send_fds(trainer, [json.dumps(arguments).encode() + b"\n"], [1, 2])
            return trainer.recv(1) == TAKEN
    except OSError:
        return False


def write_command(folder: Path, address: Path, clientapp: str, path: str) -> dict[str, str]:
    """Write a `flwr-clientapp` that hands over to the trainer, and return the environment that a SuperNode needs.

    Args:
        folder: Folder for the command; the first in the returned PATH.
        address: Path of the trainer's Unix socket.
        clientapp: Path of the real command.
        path: The SuperNode's PATH.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = folder / "flwr-clientapp"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S {shlex.quote(__file__)} "$@"\n')
    command.chmod(0o700)
    return {
        ADDRESS: str(address),
        COMMAND: clientapp,
        "PATH": f"{folder}{os.pathsep}{path}",
    }


if __name__ == "__main__":
    if not hand_over(os.environ.get(ADDRESS, ""), sys.argv[1:]):
        os.execv(os.environ[COMMAND], [os.environ[COMMAND], *sys.argv[1:]])
