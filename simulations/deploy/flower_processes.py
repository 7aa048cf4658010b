"""Deployment of Flower's own processes on this machine: a SuperLink, SuperNodes, and `flwr run`.

Without TLS, on free ports of 127.0.0.1, with Flower's home in a separate folder: a real deployment on the machine is
not touched, and nothing is left behind.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType

from fedpress.compression.errors import FedpressError

START_SECONDS = 60.0
"""Time limit for the SuperLink to listen."""
CONNECTION = "local"


class DeploymentError(FedpressError):
    """Flower's processes cannot be started, or one of them ended."""


def command(name: str) -> str:
    """Return the path of one of Flower's commands, beside this Python.

    Raises:
        DeploymentError: There is none.
    """
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise DeploymentError(f"there is no command {name} beside {sys.executable}; is flwr installed there?")
    return str(path)


def environment(home: Path) -> dict[str, str]:
    """Return the environment for Flower's processes, with `home` as FLWR_HOME.

    Telemetry is off, and so is the installation of an app's dependencies: apps use the packages installed here.
    """
    beside = Path(sys.executable).parent
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def write_app(folder: Path, name: str, server: str, client: str, config: dict[str, str | int]) -> Path:
    """Write a Flower app that only refers to installed apps, and return its folder.

    Args:
        folder: Parent of the app's folder.
        name: Name of the app and its folder.
        server: Reference to the ServerApp, "module:attribute".
        client: Reference to the ClientApp, likewise.
        config: Configuration of the run.
    """
    app = folder / name
    app.mkdir(parents=True)
    lines = [f"{key} = {_toml(value)}" for key, value in config.items()]
    (app / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "1.0.0"\nlicense = "Apache-2.0"\n'
        '[tool.flwr.app]\npublisher = "fedpress"\n'
        f'[tool.flwr.app.components]\nserverapp = "{server}"\nclientapp = "{client}"\n'
        "[tool.flwr.app.config]\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )
    return app


def _toml(value: str | int) -> str:
    return str(value) if isinstance(value, int) else f"'{value}'"


class Deployment:
    """A SuperLink and SuperNodes as processes; use it as a context manager.

    Args:
        folder: Folder for Flower's home and the processes' logs.

    Attributes:
        port: Port of the SuperLink.

    Raises:
        DeploymentError: Flower's commands are missing, or the SuperLink does not start.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._home = folder / "flwr"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.port = free_port()

    def __enter__(self) -> Deployment:
        self._home.mkdir(parents=True)
        (self._home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n'
            f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n',
            encoding="utf-8",
        )
        try:
            self._start(
                "superlink",
                "flower-superlink", "--insecure", "--disable-runtime-dependency-installation",
                "--host", "127.0.0.1", "--port", str(self.port),
            )  # fmt: skip
            self._wait_until_it_listens()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_node(
        self,
        number: int,
        nodes: int,
        port: int,
        changes: Mapping[str, str] = MappingProxyType({}),
        ca: Path | None = None,
    ) -> int:
        """Start a SuperNode and return its process id, which is its session id, too.

        Args:
            number: Partition of the node, from 0.
            nodes: Number of partitions.
            port: Port of the SuperLink, or of a proxy before it, on 127.0.0.1.
            changes: Additional environment variables.
            ca: Certificate of the authority for TLS, PEM; None: without TLS.
        """
        security = ("--insecure",) if ca is None else ("--root-certificates", str(ca))
        return self._start(
            f"supernode-{number}",
            "flower-supernode", *security, "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()),
            "--node-config", f"partition-id={number} num-partitions={nodes}",
            changes=changes,
        )  # fmt: skip

    def run(self, app: Path, timeout: float) -> str:
        """Run an app to its end and return the log of its ServerApp.

        Args:
            app: Folder of the Flower app.
            timeout: Time limit in seconds.

        Raises:
            DeploymentError: The run fails or exceeds the limit, or one of the processes has ended.
        """
        try:
            done = subprocess.run(
                [command("flwr"), "run", str(app), CONNECTION, "--stream"],
                env=environment(self._home),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise DeploymentError(f"the run of {app.name} did not end within {timeout:.0f} s: {error.output}") from None
        self._check()
        if done.returncode:
            raise DeploymentError(f"flwr run of {app.name} failed (exit code {done.returncode}):\n{done.stdout}")
        return done.stdout

    def close(self) -> None:
        """Stop all processes and their descendants."""
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its SuperExec and the apps' processes are of its group
            process.wait()
        self._processes = []

    def _start(self, name: str, *arguments: str, changes: Mapping[str, str] = MappingProxyType({})) -> int:
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [command(arguments[0]), *arguments[1:]],
                    env={**environment(self._home), **changes},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        return self._processes[-1].pid

    def _wait_until_it_listens(self) -> None:
        patience = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            self._check()
            if time.monotonic() > patience:
                raise DeploymentError(f"the SuperLink does not listen after {START_SECONDS:.0f} s:\n{self._logs()}")
            time.sleep(0.1)

    def _check(self) -> None:
        if any(process.poll() is not None for process in self._processes):
            raise DeploymentError(f"one of Flower's processes has ended:\n{self._logs()}")

    def _logs(self) -> str:
        tails = []
        for log in sorted(self._folder.glob("*.log")):
            tails.append(f"{log.name}:\n{log.read_text(encoding='utf-8', errors='replace')[-1000:]}")
        return "\n".join(tails)
