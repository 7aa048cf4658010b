"""A SuperLink's Control API that does not answer, refuses, or is busy; test_service.py asks a real one."""

import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpress.simulations.deploy import control, flower_processes, keys


@pytest.fixture
def fleet(tmp_path: Path) -> keys.Folder:
    return keys.init(tmp_path / "keys", (), 1)


@pytest.fixture
def answers(fleet: keys.Folder) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """A TLS server that gives each request the next answer of a list, and its address."""
    queue: list[tuple[int, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, text = queue.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Not on standard error."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(fleet.server, fleet.server_key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}", queue
        server.shutdown()


def test_nobody_there_is_unreachable(fleet: keys.Folder) -> None:
    address = f"127.0.0.1:{flower_processes.free_port()}"
    link = control.Control(address, fleet.ca)
    with pytest.raises(control.ControlUnreachable, match=f"the SuperLink at {address} does not answer"):
        link.nodes()
    link.close()


@pytest.mark.parametrize(
    ("status", "kind"), [(403, control.Refused), (400, control.Refused), (503, control.ControlUnreachable)]
)
def test_an_error_is_refused_or_unreachable_with_its_text(
    status: int, kind: type[Exception], answers: tuple[str, list[tuple[int, str]]], fleet: keys.Folder
) -> None:
    address, queue = answers
    queue.append((status, "not for you"))
    link = control.Control(address, fleet.ca)
    with pytest.raises(kind, match=f"the SuperLink at {address} refuses: not for you"):
        link.runs()
    link.close()


def test_one_key_that_is_refused_does_not_keep_the_others_out(
    answers: tuple[str, list[tuple[int, str]]], fleet: keys.Folder
) -> None:
    address, queue = answers
    for name in ("a", "b"):
        keys.node(fleet.path, name)
    (fleet.nodes / "c.pub").write_text("damaged")
    queue += [(200, ""), (400, json.dumps({"nothing": "known"})), (200, "")]  # an empty message: no nodes, id 0
    link = control.Control(address, fleet.ca)
    added, problems = control.register_all(link, fleet)
    link.close()
    assert added == ["b"] and [problem.split(":")[0] for problem in problems] == [
        "a is not registered", "c is not registered",
    ]  # fmt: skip
    assert queue == []


def test_a_folder_that_is_no_app_is_not_submitted(fleet: keys.Folder, tmp_path: Path) -> None:
    link = control.Control("127.0.0.1:1", fleet.ca)
    with pytest.raises(control.ServiceError, match=r"cannot pack the Flower app .*none"):
        link.start(tmp_path / "none", {})
    link.close()


def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    with pytest.raises(keys.KeysError, match=r"cannot read .*none\.crt"):
        control.Control("127.0.0.1:1", tmp_path / "none.crt")
