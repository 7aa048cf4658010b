"""Flower's processes on this machine: the parts; the benchmarks of wire and warm start whole deployments."""

import os
import socket
import sys
import tomllib
from pathlib import Path

import pytest

from fedpress.simulations.deploy import flower_processes
from fedpress.simulations.deploy.flower_processes import Deployment, DeploymentError


def test_an_app_refers_to_what_is_installed(tmp_path: Path) -> None:
    config: dict[str, str | int] = {"rounds": 3, "scenario": '{"name": "a"}'}
    app = flower_processes.write_app(tmp_path, "an-app", "a.b:server", "c:client", config)
    written = tomllib.loads((app / "pyproject.toml").read_text())
    assert app == tmp_path / "an-app" and written["project"]["name"] == "an-app"
    assert written["tool"]["flwr"]["app"]["components"] == {"serverapp": "a.b:server", "clientapp": "c:client"}
    assert written["tool"]["flwr"]["app"]["config"] == config


def test_commands_are_those_beside_this_python() -> None:
    assert Path(flower_processes.command("flower-superlink")).parent == Path(sys.executable).parent
    with pytest.raises(DeploymentError, match="no command flower-nothing beside .*; is flwr installed there"):
        flower_processes.command("flower-nothing")


def test_the_home_is_the_folder_and_nothing_is_reported(tmp_path: Path) -> None:
    variables = flower_processes.environment(tmp_path)
    assert variables["FLWR_HOME"] == str(tmp_path) and variables["FLWR_TELEMETRY_ENABLED"] == "0"
    assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_a_free_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", flower_processes.free_port())):
        pass


@pytest.mark.slow
def test_a_superlink_that_cannot_listen_is_named_with_its_log(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        deployment.port = taken.getsockname()[1]
        taken.close()
        with socket.socket() as holder:  # bound, not listening: the SuperLink finds the port in use
            holder.bind(("127.0.0.1", deployment.port))
            with pytest.raises(DeploymentError, match=r"(?s)one of Flower's processes has ended:.superlink\.log:"):
                deployment.__enter__()
