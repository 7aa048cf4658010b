"""Flower's SuperLink with limits of who may ask for what (`admission`) and of what may be open (`connections`).

Flower's own processes on this machine authenticate themselves by a secret, as Flower offers for SuperExec; Flower does
so only where SuperExec is not a child of its own, so it is started here.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.middleware import Middleware

from fedpress.simulations.deploy import _flower, connections, flower_processes, operators
from fedpress.simulations.deploy.admission import Admission

OPERATORS = "FEDPRESS_OPERATORS"
"""Environment variable with the operators' networks, separated by spaces."""
MESSAGE_BYTES = "FEDPRESS_MESSAGE_BYTES"
"""Environment variable with the largest size of a node's request."""
MOST_FILES = 1 << 16
"""Files that may be open, where the system allows so many: each connection is one."""
CHILD_SECONDS = 2.0
"""Time for SuperExec to end."""


def main() -> None:
    """Run `flower-superlink` with the limits; its arguments are this command's."""
    parser = argparse.ArgumentParser()
    for name in ("--host", "--port", "--ssl-ca-certfile", "--superexec-auth-secret-file"):
        parser.add_argument(name, required=True)
    arguments, _ = parser.parse_known_args()
    admission = Middleware(
        Admission,
        authority=_flower.Authority(),
        networks=os.environ.get(OPERATORS, "").split(),
        token=os.environ.pop(operators.TOKEN),  # its processes do not inherit it
        most=int(os.environ[MESSAGE_BYTES]),
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    counted = connections.Connections()
    options = {
        "loop": connections.loop_factory(counted),
        "http": connections.protocol(counted),
        "ws": "none",
        "proxy_headers": False,  # who connects must not choose his address
        "server_header": False,
    }
    _flower.run_superlink((admission,), options, lambda: _superexec(arguments))


@contextmanager
def _superexec(arguments: argparse.Namespace) -> Iterator[None]:
    """Run SuperExec, which starts a process for each run, while the context lasts."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(arguments.host, arguments.host)
    process = subprocess.Popen(
        [
            flower_processes.command("flower-superexec"),
            *("--runtime-api-address", f"[{host}]:{arguments.port}" if ":" in host else f"{host}:{arguments.port}"),
            *("--root-certificates", arguments.ssl_ca_certfile, "--parent-pid", str(os.getpid())),
            *("--superexec-auth-secret-file", arguments.superexec_auth_secret_file),
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(CHILD_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


if __name__ == "__main__":
    main()
