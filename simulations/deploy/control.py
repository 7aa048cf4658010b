"""Client of a SuperLink's Control API: list and register nodes; list, start and stop runs."""

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

from fedpress.compression import files
from fedpress.simulations.deploy import keys
from fedpress.simulations.deploy.children import ServiceError


class ControlUnreachable(ServiceError):
    """The SuperLink does not answer; it may later."""


class Refused(ServiceError):
    """The SuperLink answers with an error."""


class Node(NamedTuple):
    """A node as the SuperLink knows it.

    Attributes:
        id: Flower's node id.
        status: "registered" (never seen), "online", "offline" or "unregistered".
        public_key: PEM.
    """

    id: int
    status: str
    public_key: bytes


class DeployedRun(NamedTuple):
    """A run as the SuperLink knows it.

    Attributes:
        id: Flower's run id.
        status: "pending", "starting", "running" or "finished".
        sub_status: "completed", "failed" or "stopped"; empty unless finished.
        details: Reason of the status, if any.
    """

    id: int
    status: str
    sub_status: str
    details: str


class _Token:
    """Interceptor that adds the operators' token to each request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: Any, call_next: Any) -> Any:
        """Add the header and go on."""
        context.request.headers["authorization"] = f"Bearer {self._token}"
        return call_next(context)


class Control:
    """Connection to a SuperLink's Control API, over TLS.

    Each method raises `Unreachable` where the SuperLink does not answer, and `Refused` where it answers with an error.

    Args:
        address: HOST:PORT.
        ca: Certificate of the authority that signed the SuperLink's, PEM.
        token: The operators' token (`operators`); empty: a SuperLink that asks for none.

    Raises:
        KeysError: The certificate cannot be read.
    """

    def __init__(self, address: str, ca: Path, token: str = "") -> None:
        self._address = address
        interceptors = [RuntimeVersionHttpInterceptor(component_name="fedpress"), *([_Token(token)] if token else [])]
        try:
            certificate = files.read_regular(ca, files.MOST_TEXT)
            self._client = ControlHttpClient.from_server_address(address, False, certificate, interceptors)
        except OSError as error:
            raise keys.KeysError(f"cannot read {ca}: {error.strerror}") from None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def nodes(self) -> list[Node]:
        """Return all nodes that were ever registered, unregistered ones included."""
        response = self._ask(self._client.ListNodes, proto.ListNodesRequest())
        return [Node(node.node_id, node.status, bytes(node.public_key)) for node in response.nodes_info]

    def register(self, public_key: bytes) -> int:
        """Register a node by its public key (PEM), and return its id."""
        return int(self._ask(self._client.RegisterNode, proto.RegisterNodeRequest(public_key=public_key)).node_id)

    def unregister(self, node: int) -> None:
        """Unregister a node, by its id; if it is connected, it is disconnected."""
        self._ask(self._client.UnregisterNode, proto.UnregisterNodeRequest(node_id=node))

    def runs(self) -> dict[int, DeployedRun]:
        """Return all runs by their ids."""
        runs = self._ask(self._client.ListRuns, proto.ListRunsRequest()).run_dict
        return {
            id: DeployedRun(id, run.status.status, run.status.sub_status, run.status.details)
            for id, run in runs.items()
        }

    def start(self, app: Path, config: Mapping[str, Any]) -> int:
        """Submit a run, and return its id.

        Args:
            app: Folder of the Flower app.
            config: Values that override the app's own configuration.

        Raises:
            ServiceError: The app cannot be packed.
        """
        try:
            data = build_fab_from_disk(app)
        except Exception as error:  # Flower raises a different class for each fault
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
        """Return the log of a finished run's ServerApp."""

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
            cause = FlowerError.from_json(response.text)
            text = f"{cause.message} {cause.public_details or ''}".strip() if cause else response.text.strip()
            kind = ControlUnreachable if response.status_code in (502, 503, 504) else Refused
            raise kind(f"the SuperLink at {self._address} refuses: {text or error}") from None
        except httpx.TransportError as error:
            raise ControlUnreachable(f"the SuperLink at {self._address} does not answer: {error}") from None


def register_all(control: Control, folder: keys.Folder) -> tuple[list[str], list[str]]:
    """Register the public keys of a folder that the SuperLink does not know.

    Args:
        control: Connection to the SuperLink.
        folder: Keys of the fleet.

    Returns:
        Names of the nodes that were registered, and a text for each key that could not be.

    Raises:
        Unreachable: The SuperLink does not answer.
    """
    known = {node.public_key for node in control.nodes() if node.status != "unregistered"}
    added, problems = [], []
    for name, path in folder.public_keys().items():
        try:
            if (key := keys.public_bytes(path)) not in known:
                control.register(key)
                added.append(name)
        except (Refused, keys.KeysError) as error:  # one bad file must not keep the others out
            problems.append(f"{name} is not registered: {error}")
    return added, problems
