"""What an operator asks of a SuperLink: which nodes, which runs, start one, stop one. All of the service's flwr."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto import control_pb2 as proto
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedpress.simulations.deploy import keys
from fedpress.simulations.deploy.children import ServiceError

LOG_SECONDS = 10.0


class Unreachable(ServiceError):
    """The SuperLink does not answer, at the moment."""


class Refused(ServiceError):
    """The SuperLink answers, and says no."""


class Node(NamedTuple):
    """A node as the SuperLink knows it."""

    id: int
    status: str  # registered (never seen), online, offline, unregistered
    public_key: bytes  # PEM


class Run(NamedTuple):
    """A run as the SuperLink knows it."""

    id: int
    status: str  # pending, starting, running, finished
    sub_status: str  # completed, failed, stopped; empty unless finished
    details: str


class Control:
    """A connection to a SuperLink's Control API.

    Args:
        address: HOST:PORT.
        ca: certificate of the authority that signed the SuperLink's.

    Raises (each method):
        Unreachable: it does not answer.
        Refused: it answers with an error.
    """

    def __init__(self, address: str, ca: Path) -> None:
        self._address = address
        try:
            self._client = ControlHttpClient.from_server_address(
                address, False, ca.read_bytes(), [RuntimeVersionHttpInterceptor(component_name="fedpress")]
            )
        except OSError as error:
            raise keys.KeysError(f"cannot read {ca}: {error.strerror}") from None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def nodes(self) -> list[Node]:
        """Return all nodes that were ever registered."""
        response = self._ask(self._client.ListNodes, proto.ListNodesRequest())
        return [Node(node.node_id, node.status, bytes(node.public_key)) for node in response.nodes_info]

    def register(self, public_key: bytes) -> int:
        """Let a node in, and return its id."""
        return int(self._ask(self._client.RegisterNode, proto.RegisterNodeRequest(public_key=public_key)).node_id)

    def unregister(self, node: int) -> None:
        """Let a node in no more; if it is connected, it is sent away."""
        self._ask(self._client.UnregisterNode, proto.UnregisterNodeRequest(node_id=node))

    def runs(self) -> dict[int, Run]:
        """Return all runs by their ids."""
        found = self._ask(self._client.ListRuns, proto.ListRunsRequest()).run_dict
        return {id: Run(id, run.status.status, run.status.sub_status, run.status.details) for id, run in found.items()}

    def start(self, app: Path, config: Mapping[str, Any]) -> int:
        """Submit an app as a run, with values that go over its own configuration, and return its id."""
        try:
            data = build_fab_from_disk(app)
        except Exception as error:  # Flower's own classes differ from fault to fault
            raise ServiceError(f"cannot pack the Flower app {app}: {error}") from error
        request = proto.StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(data).hexdigest(), data, {})),
            override_config=user_config_to_proto(dict(config)),
        )
        return int(self._ask(self._client.StartRun, request).run_id)

    def stop(self, run: int) -> None:
        """Stop a run."""
        self._ask(self._client.StopRun, proto.StopRunRequest(run_id=run))

    def log(self, run: int) -> str:
        """Return what a finished run's ServerApp has logged."""

        def read(request: proto.StreamLogsRequest) -> str:
            return "".join(part.log_output for part in self._client.StreamLogs(request))

        text: str = self._ask(read, proto.StreamLogsRequest(run_id=run, after_timestamp=0.0))
        return text

    def _ask(self, method: Any, request: Any) -> Any:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            response = error.response
            response.read()
            found = FlowerError.from_json(response.text)
            text = f"{found.message} {found.public_details or ''}".strip() if found else response.text.strip()
            kind = Unreachable if response.status_code in (502, 503, 504) else Refused
            raise kind(f"the SuperLink at {self._address} refuses: {text or error}") from None
        except httpx.TransportError as error:
            raise Unreachable(f"the SuperLink at {self._address} does not answer: {error}") from None


def register_all(control: Control, folder: keys.Folder) -> tuple[list[str], list[str]]:
    """Register each public key of a folder that is not; return the new ones' names, and what is wrong with others.

    Raises:
        Unreachable: the SuperLink does not answer.
    """
    known = {node.public_key for node in control.nodes() if node.status != "unregistered"}
    added, problems = [], []
    for name, path in folder.public_keys().items():
        try:
            if (key := keys.public_bytes(path)) not in known:
                control.register(key)
                added.append(name)
        except (Refused, keys.KeysError) as error:  # one bad file must not keep the others out
            problems.append(f"{name} is not let in: {error}")
    return added, problems
