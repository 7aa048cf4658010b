"""Flower's SuperLink as `fedpress server` starts it, and what strangers can do to it without a key."""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from tests.apps.bad_link import BadLink

from fedpress.simulations.deploy import children, connections, control, flower_processes, keys, operators, superlink

pytestmark = [pytest.mark.slow, pytest.mark.deployment]
PATIENCE = 60.0
TOKEN = "fpo_" + "t" * 40
FROM = "127.0.0.2"
"""Address of the strangers; the tests' own is 127.0.0.1."""


class Link:
    """A SuperLink's process, and connections to it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.port = folder, folder / "flwr", flower_processes.free_port()
        self.keys = keys.init(folder / "keys", ["localhost"], 30)
        secret = operators.new_secret(folder / "secret")
        self.home.mkdir()
        settings = {superlink.OPERATORS: "127.0.0.0/8", superlink.MESSAGE_BYTES: str(256 << 20), operators.TOKEN: TOKEN}
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", superlink.__name__, "--host", "127.0.0.1", "--port", str(self.port),
                    "--ssl-certfile", str(self.keys.server), "--ssl-keyfile", str(self.keys.server_key),
                    "--ssl-ca-certfile", str(self.keys.ca), "--enable-supernode-auth", "--isolation", "process",
                    "--superexec-auth-secret-file", str(secret), "--database", str(folder / "database"),
                ],
                env=flower_processes.environment(self.home) | settings,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.until_it_answers()

    def until_it_answers(self) -> None:
        patience = time.monotonic() + PATIENCE
        while True:
            with suppress(control.ControlUnreachable):
                self.nodes()
                return
            assert time.monotonic() < patience and self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)

    def nodes(self, port: int | None = None, token: str = TOKEN) -> list[control.Node]:
        with closing(control.Control(f"127.0.0.1:{port or self.port}", self.keys.ca, token)) as operator:
            return operator.nodes()

    def connect(self, address: str = FROM) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE, (address, 0))

    def secure(self, address: str = FROM) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.keys.ca))
        return context.wrap_socket(self.connect(address), server_hostname="localhost")

    @property
    def memory(self) -> int:
        return children.memory_of(self.process.pid)


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    running = Link(tmp_path_factory.mktemp("link"))
    try:
        yield running
    finally:
        os.killpg(running.process.pid, signal.SIGTERM)
        running.process.wait(timeout=PATIENCE)
        children.end_all(running.home)


def answer(connection: socket.socket) -> bytes:
    """What a connection says until the other end closes it; a reset is an end."""
    said = b""
    with suppress(ConnectionError, ssl.SSLError):
        while piece := connection.recv(1 << 16):
            said += piece
    return said


def request(length: int, path: str = "/v1/fleet/push-object", more: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\ncontent-length: {length}\r\n"
    return f"{head}{more}\r\n".encode()


def test_eight_strangers_with_240_mb_less_a_byte_take_no_memory(link: Link) -> None:
    before, size, piece = link.memory, 240_000_000, bytes(1 << 20)
    with ExitStack() as stack:
        strangers = [stack.enter_context(link.secure()) for _ in range(8)]
        for stranger in strangers:
            stranger.sendall(request(size))
        for stranger in strangers:
            with suppress(OSError):  # it is closed soon
                for _ in range(size // len(piece)):
                    stranger.sendall(piece)
        assert link.memory - before < 30_000_000
        link.nodes()
    assert "401" in link.log.read_text()


def test_headers_without_an_end_are_given_up(link: Link) -> None:
    before = link.memory
    with link.secure() as stranger, suppress(OSError):
        stranger.sendall(b"POST / HTTP/1.1\r\n")
        for number in range(10_000):
            stranger.sendall(f"x-{number}: {'y' * 5000}\r\n".encode())
    assert link.memory - before < 10_000_000
    with link.secure() as stranger:
        stranger.sendall(b"POST / HTTP/1.1\r\nx: " + b"y" * 2 * connections.MOST_HEADER_BYTES)
        assert answer(stranger).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nhost: x\r\n", b"\r\n"])
def test_one_that_says_nothing_more_is_given_up(link: Link, sent: bytes) -> None:
    with link.secure() as stranger:
        stranger.sendall(sent)
        assert answer(stranger).startswith(b"HTTP/1.1 408 ")


def test_a_stranger_that_never_begins_tls_is_given_up(link: Link) -> None:
    with link.connect() as stranger:
        assert answer(stranger) == b""


def test_many_connections_of_one_address_are_cut_and_nobody_else_is_disturbed(link: Link) -> None:
    with ExitStack() as stack:
        strangers = [stack.enter_context(link.connect()) for _ in range(3 * connections.STRANGERS_EACH)]
        link.nodes()
        for stranger in strangers:
            stranger.settimeout(1.0)
        link.until_it_answers()
        closed = 0
        for stranger in strangers:
            with suppress(TimeoutError):
                closed += answer(stranger) == b""
        assert closed >= 2 * connections.STRANGERS_EACH


def test_finished_handshakes_are_bounded_too(link: Link) -> None:
    with ExitStack() as stack:
        strangers = []
        for _ in range(connections.STRANGERS_EACH + 20):
            strangers.append(stack.enter_context(link.secure()))
        link.nodes()
        strangers[0].settimeout(PATIENCE)
        assert answer(strangers[0]) == b""  # the oldest is closed, without an answer


def test_operators_need_the_token_also_through_a_proxy_on_the_same_machine(link: Link) -> None:
    assert link.nodes() == []
    with pytest.raises(control.Refused, match=r"needs the operators' token: `operator.token` in"):
        link.nodes(token="")
    with BadLink(link.port) as proxy:
        assert link.nodes(proxy.port) == []
        with pytest.raises(control.Refused, match="needs the operators' token"):
            link.nodes(proxy.port, token="x" * 44)


def test_a_task_is_given_to_flowers_own_process_alone(link: Link) -> None:
    """Flower's AcquireTask hands out a run, and with it the place of its ServerApp."""
    with link.secure("127.0.0.1") as stranger:
        stranger.sendall(request(0, "/v1/runtime/acquire-task", "connection: close\r\n"))
        assert answer(stranger).startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 403 "))


def test_flowers_own_commands_are_an_operators_with_the_home_that_the_server_writes(link: Link, tmp_path: Path) -> None:
    home = tmp_path / "operator"
    operators.flower_home(home, f"127.0.0.1:{link.port}", link.keys.ca, TOKEN)

    def flwr(*words: str) -> str:
        done = subprocess.run(
            [flower_processes.command("flwr"), *words], env=flower_processes.environment(home),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE,
        )  # fmt: skip
        return f"{done.returncode} {done.stdout}"

    assert re.match(r"0 .*", flwr("ls", operators.CONNECTION), re.DOTALL)
    (home / "credentials.yaml").unlink()
    assert "HTTP/Status/403" in flwr("ls", operators.CONNECTION)
