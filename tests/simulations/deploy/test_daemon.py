"""The client's daemon: conditions, configuration, and what is in the way of a server; test_service.py runs it whole."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpress.simulations.deploy import children, daemon, flower_processes, keys, settings


@pytest.fixture
def client(tmp_path: Path) -> settings.ClientSettings:
    """Settings with a node's key, for a server that nobody runs."""
    private, _ = keys.node(tmp_path / "keys", "node-0")
    address = f"127.0.0.1:{flower_processes.free_port()}"
    return settings.ClientSettings(superlink=address, key=str(private), state=str(tmp_path / "state"))


def run_until(service: daemon.EdgeDaemon, true: Callable[[], bool]) -> None:
    """Run a daemon until something is true, and stop it."""
    thread = threading.Thread(target=service.run)
    thread.start()
    patience = time.monotonic() + 20
    try:
        while not true():
            assert thread.is_alive() and time.monotonic() < patience
            time.sleep(0.05)
    finally:
        service.stop()
        thread.join(timeout=20)
    assert not thread.is_alive()


def test_a_client_waits_where_a_condition_is_not_met(client: settings.ClientSettings) -> None:
    said: list[str] = []
    service = daemon.EdgeDaemon(client.model_copy(update={"only_if": "exit 4"}), said.append)
    run_until(service, lambda: len(said) > 1)
    assert said[1:] == ["paused: `exit 4` exits with 4", "stopped"] and service.health()[0]


def test_a_server_that_is_away_is_named_and_no_process_starts(client: settings.ClientSettings, tmp_path: Path) -> None:
    ca = keys.init(tmp_path / "authority", (), 1).ca
    said: list[str] = []
    service = daemon.EdgeDaemon(client.model_copy(update={"ca": str(ca)}), said.append)
    run_until(service, lambda: len(said) > 1)
    assert said[1].startswith(f"waiting: cannot reach the server at {client.superlink}: ")
    assert not service.health()[0] and not (tmp_path / "state" / "supernode.log").exists()
    figures = {figure.name: figure for figure in service.figures()}
    assert [labels for labels, value in figures["client_state"].values.items() if value] == [("waiting",)]
    assert figures["client_starts"].values == {(): 0} and figures["memory_bytes"].values[("daemon",)] > 1_000_000


def test_two_daemons_do_not_share_a_state(client: settings.ClientSettings) -> None:
    Path(client.state).mkdir()
    with children.locked(Path(client.state), "a client"), pytest.raises(children.ServiceError, match="running already"):
        daemon.EdgeDaemon(client, lambda line: None).run()


def test_a_folder_of_data_that_is_missing_is_named(client: settings.ClientSettings) -> None:
    with pytest.raises(settings.SettingsError, match="data: there is no folder /none"):
        daemon.EdgeDaemon(client.model_copy(update={"data": "/none"}), lambda line: None).run()


@pytest.mark.parametrize("key", ["init", "base"])
def test_a_file_of_weights_that_is_missing_is_named(key: str, client: settings.ClientSettings) -> None:
    with pytest.raises(settings.SettingsError, match=f"{key}: there is no file or folder /none"):
        daemon.EdgeDaemon(client.model_copy(update={key: "/none"}), lambda line: None).run()


def test_a_server_without_tls_and_one_without_a_certificate_to_trust(tmp_path: Path) -> None:
    ca = keys.init(tmp_path / "keys", (), 1).ca
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer() -> None:
            connection, _ = plain.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        address = f"127.0.0.1:{plain.getsockname()[1]}"
        assert daemon.handshake(address, ca).startswith(f"the server at {address} does not speak TLS as expected: ")
    assert daemon.clock_ahead(address, ca) is None
    assert "cannot use the authority's certificate" in daemon.handshake(address, tmp_path / "none.crt")


def test_nodes_are_told_their_folders(tmp_path: Path) -> None:
    from flwr.common.config import parse_config_args

    chosen = settings.ClientSettings(
        superlink="a:1",
        key="k",
        state=str(tmp_path / "a folder"),
        partition=3,
        data="/my data",
        init="/my init",
        base="/my base",
        tier="phone",
    )
    assert parse_config_args([daemon.node_config(chosen)]) == {
        "state-folder": str(tmp_path / "a folder" / "rounds"),
        "download-folder": str(tmp_path / "a folder" / "downloads"),
        "data-folder": "/my data",
        "initial-weights": "/my init",
        "base-weights": "/my base",
        "base-folder": str(tmp_path / "a folder" / "bases"),
        "tier": "phone",
        "workloads": "fedpress.simulations.runs.job:load",
        "partition-id": 3,
    }
