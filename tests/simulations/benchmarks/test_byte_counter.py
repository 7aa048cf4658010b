"""The counting forwarder: passes on every byte and gives it to the right request."""

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpress.simulations.benchmarks.byte_counter import ByteCounter
from fedpress.simulations.deploy import keys


def read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


@pytest.fixture
def server() -> Iterator[int]:
    """A server of requests `POST /path LENGTH:ANSWER`, with LENGTH bytes more; it answers with ANSWER bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            while head := lines.readline():
                _, path, sizes = head.split(b" ")
                length, wanted = map(int, sizes.split(b":"))
                assert lines.read(length) == b"u" * length
                connection.sendall(b"d" * wanted)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def ask(connection: socket.socket, path: str, up: int, down: int) -> int:
    """Send a request, check the response, and return the request's size."""
    request = f"POST {path} {up}:{down}\r\n".encode() + b"u" * up
    connection.sendall(request)
    assert read(connection, down) == b"d" * down
    return len(request)


def test_every_byte_is_counted_once_and_by_its_request(server: int) -> None:
    with ByteCounter(server) as counter:
        with (
            socket.create_connection(("127.0.0.1", counter.port)) as one,
            socket.create_connection(("127.0.0.1", counter.port)) as other,
        ):
            sizes = [ask(one, "/a", 0, 5), ask(one, "/b", 3_000_000, 1), ask(other, "/c", 10, 3_000_000)]
            sizes.append(ask(one, "/a", 7, 2))
        found = counter.requests()
    assert [(request.path, request.up, request.down) for request in found] == [
        ("/a", sizes[0], 5), ("/b", sizes[1], 1), ("/c", sizes[2], 3_000_000), ("/a", sizes[3], 2),
    ]  # fmt: skip
    assert [request.began for request in found] == sorted(request.began for request in found)


def test_tls_is_taken_off_and_counted_by_the_one_before(server: int, tmp_path: Path) -> None:
    made = keys.init(tmp_path / "keys", ["127.0.0.1"], days=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server, made.server_key)
    trusting = ssl.create_default_context(cafile=made.ca)
    with ByteCounter(server, context) as inner, ByteCounter(inner.port) as outer:
        with (
            socket.create_connection(("127.0.0.1", outer.port)) as plain,
            trusting.wrap_socket(plain, server_hostname="127.0.0.1") as one,
        ):
            size = ask(one, "/a", 100_000, 50_000)
        assert [(request.path, request.up, request.down) for request in inner.requests()] == [("/a", size, 50_000)]
        up, down = (sum(getattr(request, way) for request in outer.requests()) for way in ("up", "down"))
    assert size < up < size + 2_000 and 50_000 < down < 52_500
    assert (inner.connections, outer.connections) == (1, 1)


def test_a_connection_to_nobody_is_closed_and_counts_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with ByteCounter(port) as counter, socket.create_connection(("127.0.0.1", counter.port)) as connection:
        assert connection.recv(1) == b""
        assert counter.requests() == []
