"""The stand-in for `flwr-clientapp`: a call reaches a trainer with the caller's own output, or is done without one."""

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedpress.client.warm import hand_over


@contextmanager
def listening(address: Path, answer: bytes) -> Iterator[list[list[str]]]:
    """A trainer that writes a line to the caller's output, and answers."""
    calls: list[list[str]] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()

        def serve() -> None:
            caller, _ = listener.accept()
            with caller:
                data, fds, _, _ = socket.recv_fds(caller, 1 << 16, 2)
                calls.append(json.loads(data))
                for fd in fds:
                    os.write(fd, b"from the trainer\n")
                    os.close(fd)
                caller.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield calls
        thread.join(10)
        assert not thread.is_alive()


def command(folder: Path, address: Path) -> tuple[Path, dict[str, str]]:
    real = folder / "real"
    real.write_text('#!/bin/sh\necho "without a trainer: $*"\n')
    real.chmod(0o700)
    environment = hand_over.write_command(folder / "bin", address, str(real), os.environ["PATH"])
    return folder / "bin" / "flwr-clientapp", {**os.environ, **environment}


@pytest.mark.parametrize("arguments", [[], ["--token", "a b", "--insecure"], ["ü", "'", '"']])
def test_a_trainer_gets_arguments_and_output(tmp_path: Path, arguments: list[str]) -> None:
    path, environment = command(tmp_path, tmp_path / "socket")
    with listening(tmp_path / "socket", hand_over.TAKEN) as calls:
        done = subprocess.run([path, *arguments], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "from the trainer\n", "from the trainer\n")
    assert calls == [arguments]


def test_a_trainer_that_does_not_take_the_call_leaves_it_to_the_real_command(tmp_path: Path) -> None:
    path, environment = command(tmp_path, tmp_path / "socket")
    with listening(tmp_path / "socket", b""):
        done = subprocess.run([path, "--token", "a b"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("without a trainer: --token a b\n")


def test_where_no_trainer_listens_nothing_is_taken(tmp_path: Path) -> None:
    assert not hand_over.hand_over(str(tmp_path / "absent"), ["--help"])
    assert not hand_over.hand_over("", ["--help"])


def test_the_command_comes_first_in_the_path_and_is_the_owners(tmp_path: Path) -> None:
    path, environment = command(tmp_path, tmp_path / "socket")
    assert environment["PATH"].split(os.pathsep)[0] == str(path.parent)
    assert path.stat().st_mode & 0o777 == 0o700
