"""Warm trainer: one process in which everything is imported and loaded, forked for every message.

Flower starts a process for every message, which imports Flower and torch, and loads model and data, before it trains.
Here these are loaded once. `flwr-clientapp` in the SuperNode's PATH is a small script that passes its arguments over a
Unix socket (`hand_over`); the trainer forks, and the child does what `flwr-clientapp` does. So every message still has
a process of its own: one that crashes or leaks harms no other.

    python -m fedpress.client.warm.trainer SOCKET

The trainer itself never computes with more than one thread, since a fork would lose the others.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from flwr.supercore import log

from fedpress.client import _flower, app
from fedpress.client.training import train
from fedpress.client.warm import hand_over

PRELOADED = (*_flower.IMPORTED_FOR_A_MESSAGE, "safetensors.numpy", "fedpress.compression.models.task", train.__name__)
MAX_REQUEST_BYTES = 1 << 16
LOOK_SECONDS = 1.0
"""Interval at which the trainer checks that its parent still exists."""


class Trainer:
    """Server on a Unix socket that forks for every call.

    Args:
        address: Path of the socket; a stale one is replaced.
        threads: Threads that a child trains with; 0: one for each core.
        reload_after: Seconds after which data and model are loaded anew; 0: never.
    """

    def __init__(self, address: Path, threads: int = 0, reload_after: float = 0.0) -> None:
        self._threads = threads or os.cpu_count() or 1
        self._reload_after = reload_after
        self._loaded_at = 0.0
        self._loaded: app.WorkKey | None = None
        self._children: set[int] = set()
        address.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)  # no other user may connect
        try:
            self._listener.bind(str(address))
        finally:
            os.umask(before)
        self._listener.listen()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def run(self, parent: int) -> None:
        """Serve until SIGTERM, or until this process has another parent than `parent`: it was left alone."""
        while os.getppid() == parent:
            for key, _ in self._selector.select(LOOK_SECONDS):
                key.data(key.fileobj)
            self._reap()

    def close(self) -> None:
        """Stop listening; children finish their work."""
        self._selector.close()
        self._listener.close()

    def _reap(self) -> None:
        for child in list(self._children):
            if os.waitpid(child, os.WNOHANG)[0]:
                self._children.discard(child)

    def _accept(self, listener: socket.socket) -> None:
        caller, _ = listener.accept()
        with caller:
            caller.settimeout(hand_over.ANSWER_SECONDS)
            try:
                arguments, fds = _received(caller)
            except (OSError, ValueError) as error:
                log(logging.WARNING, "a call that cannot be read: %s", error)
                return
            try:
                self._fork(arguments, fds)
            except OSError as error:  # the caller does the work itself
                log(logging.WARNING, "cannot fork: %s", error)
                return
            finally:
                for fd in fds:
                    os.close(fd)
            with suppress(OSError):
                caller.sendall(hand_over.TAKEN)

    def _fork(self, arguments: list[str], fds: list[int]) -> None:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            self._become_client_app(arguments, fds, writing)
        os.close(writing)
        self._children.add(child)
        self._selector.register(os.fdopen(reading, "rb"), selectors.EVENT_READ, self._learn)

    def _become_client_app(self, arguments: list[str], fds: list[int], writing: int) -> None:
        """Do what `flwr-clientapp` does, in the child, and end the process."""
        code: Any = 1
        try:
            self.close()
            for fd, standard in zip(fds, (1, 2), strict=True):
                os.dup2(fd, standard)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            torch.set_num_threads(self._threads)
            sys.argv = ["flwr-clientapp", *arguments]
            _flower.flwr_clientapp()
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError):
                if app.app.latest is not None:
                    os.write(writing, json.dumps(app.app.latest).encode())
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)

    def _learn(self, pipe: IO[bytes]) -> None:
        """Load the work that a child has needed, for the children to come."""
        self._selector.unregister(pipe)
        with pipe:
            latest = pipe.read()
        if not latest:
            return
        config, client, tier = json.loads(latest)
        needed = app.WorkKey(tuple((key, value) for key, value in config), client, tier)
        old = self._reload_after and time.monotonic() - self._loaded_at > self._reload_after
        if needed == self._loaded and not old:
            return
        if old:
            app.forget()
        try:
            app.preload(needed)
        except Exception as error:  # the server learns of it, too: the next message fails in the same way
            log(logging.WARNING, "cannot load in advance: %s: %s", type(error).__name__, error)
        self._loaded, self._loaded_at = needed, time.monotonic()
        gc.collect()
        gc.freeze()  # or a collection in a child would copy every page


def _received(caller: socket.socket) -> tuple[list[str], list[int]]:
    """Return the arguments and file descriptors of a call; raise ValueError where the bytes are no call."""
    data, fds, _, _ = socket.recv_fds(caller, MAX_REQUEST_BYTES, 2)
    try:
        while not data.endswith(b"\n"):
            more = caller.recv(MAX_REQUEST_BYTES)
            if not more or len(data) > MAX_REQUEST_BYTES:
                raise ValueError(f"{len(data)} bytes that do not end as arguments do")
            data += more
        arguments = json.loads(data)
        if len(fds) != 2 or not all(isinstance(argument, str) for argument in arguments):
            raise ValueError(f"{len(fds)} file descriptors and {str(arguments)[:100]}")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return arguments, list(fds)


def main() -> None:
    """Load what messages need, and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m fedpress.client.warm.trainer", description="A warm trainer for messages."
    )
    parser.add_argument("socket", type=Path, help="path of the Unix socket")
    parser.add_argument("--threads", type=int, default=0, help="to train with; 0: one for each core")
    parser.add_argument("--reload-after", type=float, default=0.0, help="seconds until data is read again; 0: never")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="ends when its parent is another process")
    given = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    trainer = Trainer(given.socket, given.threads, given.reload_after)
    gc.freeze()
    try:
        trainer.run(given.parent)
    except KeyboardInterrupt:
        pass
    finally:
        with suppress(OSError):
            given.socket.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
