"""Children end with their parent, in order and once; locks, waiting times, and who may ask for what."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from fedpress.simulations.deploy import children, flower_processes, monitor, settings, superlink
from fedpress.simulations.deploy import daemon as edge_daemon

POLITE = """
import signal, sys, time
count = 0
def end(*_):
    global count
    count += 1
    print("asked", flush=True)
    if count == 1:
        time.sleep(0.5)
        print("signed off", flush=True)
        sys.exit(3)
signal.signal(signal.SIGTERM, end)
print("here", flush=True)
time.sleep(60)
"""


def until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    patience = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < patience
        time.sleep(0.05)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def home_of(folder: Path) -> dict[str, str]:
    return {**os.environ, "FLWR_HOME": str(folder)}


def test_a_child_is_stopped_in_order(tmp_path: Path) -> None:
    child = children.Child(python(POLITE), home_of(tmp_path), tmp_path / "log")
    until(lambda: "here" in child.tail)
    assert len(children.belonging_to(tmp_path)) == 1 and child.ended() is None
    child.stop()
    assert list(child.tail) == ["here", "asked", "signed off"]
    assert child.ended() == 3 and children.belonging_to(tmp_path) == {}


def test_a_child_of_a_killed_parent_is_asked_once_and_signs_off(tmp_path: Path) -> None:
    """The parent has several threads, for each of which the kernel would send a signal of its own."""
    parent = subprocess.Popen(
        python(
            "import threading, time, os; from pathlib import Path;"
            "from fedpress.simulations.deploy import children;"
            "[threading.Thread(target=time.sleep, args=(60,), daemon=True).start() for _ in range(4)];"
            f"children.Child([{sys.executable!r}, '-c', {POLITE!r}], {{**os.environ, 'FLWR_HOME': {str(tmp_path)!r}}},"
            f" Path({str(tmp_path / 'log')!r})); time.sleep(60)"
        )
    )
    try:
        until(lambda: (tmp_path / "log").exists() and "here" in (tmp_path / "log").read_text())
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not children.belonging_to(tmp_path))
    assert (tmp_path / "log").read_text().split("\n") == ["here", "asked", "signed off", ""]


def test_a_child_whose_guard_is_killed_ends_too(tmp_path: Path) -> None:
    child = children.Child(python(POLITE), home_of(tmp_path), tmp_path / "log")
    until(lambda: "here" in child.tail)
    child._process.kill()
    until(lambda: not children.belonging_to(tmp_path))
    assert child.ended() == -signal.SIGKILL


@pytest.mark.slow
def test_one_that_does_not_listen_is_made_to_end(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(60)"
    )
    child = children.Child(python(deaf), home_of(tmp_path), tmp_path / "log")
    until(lambda: "here" in child.tail)
    child.stop()
    assert child.ended() is not None and children.belonging_to(tmp_path) == {}


def test_an_orphan_of_the_same_home_is_ended_and_no_other(tmp_path: Path) -> None:
    here, there = ({**os.environ, "FLWR_HOME": str(tmp_path / name)} for name in ("a", "b"))
    orphan, other = (subprocess.Popen(python("import time; time.sleep(60)"), env=env) for env in (here, there))
    try:
        until(lambda: children.belonging_to(tmp_path / "a") and children.belonging_to(tmp_path / "b"))
        reaper = threading.Thread(target=orphan.wait)
        reaper.start()
        assert children.end_all(tmp_path / "a", wait=0.0) == 1
        reaper.join()
        assert orphan.returncode == -signal.SIGTERM and other.poll() is None
    finally:
        for process in (orphan, other):
            process.kill()
            process.wait()


def test_memory_of_a_child_is_limited(tmp_path: Path) -> None:
    child = children.Child(python("bytearray(2**30)"), home_of(tmp_path), tmp_path / "log", memory=2**29)
    until(lambda: child.ended() is not None)
    assert child.ended() == 1 and "MemoryError" in child.tail


def test_a_lock_is_held_by_one_and_ends_with_it(tmp_path: Path) -> None:
    with children.locked(tmp_path, "a client"):
        with pytest.raises(children.ServiceError, match=f"is running already \\(process {os.getpid()}\\)"):
            with children.locked(tmp_path, "a client"):
                pass
    with children.locked(tmp_path, "a client"):
        pass


def test_failures_that_take_long_or_get_on_or_differ_are_no_loop() -> None:
    failures = children.Failures(3, 60.0)
    assert not any(failures.hopeless("killed", 61.0) for _ in range(5))
    assert not any(failures.hopeless("killed", 1.0, got_on=True) for _ in range(5))
    assert not any(failures.hopeless(reason, 1.0) for reason in ("a", "b", "a", "b"))
    assert [failures.hopeless("b", 1.0) for _ in range(3)] == [False, True, True]


@pytest.fixture
def guarded() -> Starlette:
    paths = ("/v1/fleet/pull-messages", "/v1/control/start-run", "/v1/runtime/acquire-task", "/docs")
    app = Starlette(routes=[Route(path, lambda _: PlainTextResponse("served")) for path in paths])
    app.add_middleware(superlink.OperatorsOnly, networks=["127.0.0.0/8", "192.0.2.0/24"])
    return app


def asked(app: Starlette, address: str, path: str) -> httpx.Response:
    """The answer to a client of this address."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(address, 40000))
        async with httpx.AsyncClient(transport=transport, base_url="http://link") as http:
            return await http.get(path)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("address", "operator"),
    [("127.0.0.1", True), ("192.0.2.9", True), ("198.51.100.1", False), ("::ffff:192.0.2.9", True), ("::1", False)],
)
def test_only_operators_reach_more_than_the_nodes_part(guarded: Starlette, address: str, operator: bool) -> None:
    assert asked(guarded, address, "/v1/fleet/pull-messages").text == "served"
    for path in ("/v1/control/start-run", "/v1/runtime/acquire-task", "/docs"):
        assert asked(guarded, address, path).status_code == (200 if operator else 403)


def test_the_nodes_part_is_no_way_around(guarded: Starlette) -> None:
    for path in ("/v1/fleet/%2e%2e/control/start-run", "/v1/fleet%2f..%2fcontrol/start-run", "//v1/control/start-run"):
        assert asked(guarded, "198.51.100.1", path).status_code in (403, 404)


def test_the_metrics_port_answers(tmp_path: Path) -> None:
    port, well = flower_processes.free_port(), True
    figures = [
        monitor.figure("round", "Round.", 3.0),
        monitor.Figure("bytes", "Bytes.", {("up",): 5.0, ("down",): 7.0}, ("direction",), total=True),
        monitor.figure("accuracy", "Not known yet.", None),
    ]

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    with monitor.served(f"127.0.0.1:{port}", lambda: figures, lambda: (well, {"state": "connected"})):
        status, text = get("/metrics")
        assert status == 200 and 'fedpress_bytes_total{direction="down"} 7.0' in text and "fedpress_round 3.0" in text
        assert "\nfedpress_accuracy " not in text
        assert (get("/health")[0], json.loads(get("/health")[1])) == (200, {"state": "connected"})
        well = False
        assert get("/health")[0] == 503 and get("/")[0] == 404
        with pytest.raises(children.ServiceError, match="choose another port"):
            with monitor.served(f"127.0.0.1:{port}", lambda: figures, lambda: (well, {})):
                pass


def test_a_client_waits_where_a_condition_is_not_met(tmp_path: Path) -> None:
    chosen = settings.Client(superlink="127.0.0.1:1", key="key", state=str(tmp_path), only_if="exit 4")
    said: list[str] = []
    daemon = edge_daemon.Client(chosen, said.append)
    daemon._step()
    assert said == ["paused: `exit 4` exits with 4"] and daemon.health()[0]
    assert list(tmp_path.iterdir()) == []


def test_nodes_are_told_their_folders(tmp_path: Path) -> None:
    from flwr.common.config import parse_config_args

    chosen = settings.Client(
        superlink="a:1", key="k", state=str(tmp_path / "a folder"), partition=3, data="/my data", tier="phone"
    )
    assert parse_config_args([edge_daemon.node_config(chosen)]) == {
        "state-folder": str(tmp_path / "a folder" / "rounds"),
        "download-folder": str(tmp_path / "a folder" / "downloads"),
        "data-folder": "/my data",
        "tier": "phone",
        "partition-id": 3,
    }
