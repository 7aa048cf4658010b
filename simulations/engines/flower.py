"""Flower's own simulation engine as a grid: clients run in Ray's processes, on this machine or on a cluster.

The ServerApp runs in this process, as on the inline engine, and on the same kind of grid: nodes numbered from 1 in the
order of the client indices, a clock that stands still, clients' states in files beside the server. So a scenario ends
with the same model, to the bit, on either engine. Virtual time, hence `network` and `faults`, is the inline engine's
alone.

The engine is the one of `flwr run`: Flower's link state, queue, and backend on Ray (`vce_api.run_api`). It is started
from its parts and not by `run_simulation`, which is deprecated, gives ClientApps no run configuration, and after Ctrl-C
waits for all clients at work.
"""

import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from logging import DEBUG, ERROR, getLogger
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray
from flwr.app import Error, Message, UserConfigValue

from fedpress.compression.messages import records
from fedpress.simulations.engines import _flower, _flower_on_ray, client_states, flower_app, worker
from fedpress.simulations.engines.client_grid import ClientGrid, EngineError
from fedpress.simulations.engines.inline import GridState
from fedpress.simulations.engines.worker_process import RUN_ID
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.scenario.scenario import Scenario

POLL_SECONDS = 0.02
"""Interval between two looks at the grid. Flower itself hands out orders every 0.1 s."""
REACH_SECONDS = 10.0
"""Timeout of a connection to a cluster."""
LOOK_SECONDS = 5.0
"""Interval between two checks that all machines of the cluster are alive."""
CLIENT: Any = {"num_cpus": 1, "max_restarts": -1, "max_task_retries": 1}
"""Ray's options for processes that run clients. A process that dies is restarted and its message retried once, which is
safe, since the client's state is in the message."""
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
"""Environment of the processes that train, on every machine: one and two threads give different weights."""
SHARED_GPUS = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""All clients see the GPUs of their machine, as on the inline engine; Ray would hide GPUs that are not reserved."""


class StillClock:
    """Clock that stands still: no deadline passes, and a wait only gives the clients time to answer."""

    def now(self) -> float:
        """Return 0."""
        return 0.0

    def wait(self, until: float) -> None:
        """Sleep until the next look at the grid, whatever `until` is."""
        time.sleep(POLL_SECONDS)


class FlowerGrid(ClientGrid):
    """Grid over Flower's simulation engine; use it as a context manager.

    A client has one message at a time: its state goes out with an order and comes back with the reply.

    Args:
        client_app: The ClientApp, as "module:attribute"; loaded in the processes that run it.
        clients: Number of simulated clients.
        workers: Number of processes on this machine; a cluster has one for each of its CPUs.
        run_config: What the ClientApp finds in `context.run_config`.
        address: Address of a Ray cluster to join, "HOST:PORT" or "auto"; None: start Ray on this machine.
        states: Folder of the clients' states, which then outlive the engine; None: a temporary one.

    Attributes:
        clock: Stands still.
        seconds: Empty: Flower's engine does not measure its processes.

    Raises:
        EngineError: There is no such cluster, it has no CPU, or `states` is in use by another run.
        EngineError: Flower's engine ended, or a machine is gone (raised later, by `pull_messages`).
    """

    def __init__(
        self,
        client_app: str,
        *,
        clients: int,
        workers: int = 2,
        run_config: Mapping[str, UserConfigValue] | None = None,
        address: str | None = None,
        states: Path | None = None,
    ) -> None:
        super().__init__(clients, workers, _flower.Run.create_empty(RUN_ID))
        self.clock = StillClock()
        self.seconds: dict[str, float] = {}
        self._app = flower_app.RemoteApp(client_app, run_config or {})
        self._durable = states is not None
        self._stopped = Event()
        self._failure: BaseException | None = None
        self._backend: _flower_on_ray.Backend | None = None
        with contextlib.ExitStack() as cleanup:  # undone if a later step fails
            if states is not None:
                cleanup.enter_context(client_states.locked(states))
                self._states = states
            else:
                self._states = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix=client_states.TEMPORARY)))
            cleanup.callback(ray.shutdown)
            _start_ray(address, workers)
            self._cpus, self._next_check = _cpus(), time.monotonic() + LOOK_SECONDS
            if not self._cpus:
                raise EngineError(
                    f"the cluster at {address!r} has no CPU for clients: `ray start --num-cpus=N` gives some"
                )
            getLogger("flwr").log(DEBUG, "Flower's engine: %d processes for clients", self._cpus)
            _flower.identify(RUN_ID, _flower_on_ray.SUPERLINK_NODE_ID, 1)
            self._engine = _flower_on_ray.Engine(self._run, clients)
            self._grid = self._engine.grid
            self._nodes = {client: node for node, client in self._engine.parts.items()}
            self._numbers = {node: client + 1 for node, client in self._engine.parts.items()}
            self._thread = Thread(target=self._serve, name="flower-engine")
            self._cleanup = cleanup.pop_all()
        self._thread.start()

    def close(self) -> None:
        """Stop the clients at work and leave the cluster; the temporary states are removed."""
        self._stopped.set()
        while self._thread.is_alive():
            if self._backend:
                self._backend.stop_clients()
            self._thread.join(timeout=0.5)
        self._cleanup.close()

    # ---- Flower's Grid ---------------------------------------------------------------------------------------------

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand the messages to Flower, each with its client's state, and return their ids.

        Raises:
            ValueError: A message goes to a node that does not exist.
        """
        ids: list[str] = []
        for message in messages:
            metadata = message.metadata
            client = self._client(message)
            sent = Message(
                flower_app.with_state(message.content, client_states.read(self._states, client)),
                dst_node_id=self._nodes[client],
                message_type=metadata.message_type,
                group_id=metadata.group_id,
                ttl=metadata.ttl,
            )
            for message_id in self._grid.push_messages([sent]):
                records.set_id(message, message_id)
                ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived, in the order of the nodes; their clients' states are on the disk then.

        Raises:
            EngineError: Flower's engine has ended, or a machine is gone.
        """
        if not self._thread.is_alive():
            raise EngineError(f"Flower's simulation engine has ended: {self._failure or 'see the log'}")
        replies = list(self._grid.pull_messages(message_ids))
        # Errors that no client made: a process died, by itself or with its machine.
        died = any(
            reply.has_error() and reply.error.code != _flower.ErrorCode.CLIENT_APP_RAISED_EXCEPTION for reply in replies
        )
        if died or time.monotonic() > self._next_check:
            self._next_check = time.monotonic() + LOOK_SECONDS
            if (left := _cpus()) < self._cpus:  # Ray would wait for its return, and the round with it
                raise EngineError(
                    f"the cluster had {self._cpus} CPUs when the run began, and now has {left}: a machine is gone;"
                    " a run that is resumed goes on with those that are there"
                )
        return sorted(map(self._taken, replies), key=lambda reply: reply.metadata.src_node_id)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push the messages and return the replies.

        Args:
            messages: Orders.
            timeout: Real seconds after which the replies so far are returned; None: wait for all.
        """
        pending = set(self.push_messages(messages))
        until = float("inf") if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while pending:
            arrived = self.pull_messages(pending)
            pending -= {reply.metadata.reply_to_message_id for reply in arrived}
            replies += arrived
            if time.monotonic() >= until:
                break
            if pending:
                self.clock.wait(until)
        return replies

    # ---- for checkpoints and results, as on the inline engine ------------------------------------------------------

    def states_digest(self) -> str:
        """Return the SHA-256 over all clients' states."""
        return client_states.digest(self._states, self._clients)

    def state(self) -> GridState:
        """Return the state of an idle inline engine: a run may go on with either engine."""
        return GridState()

    def restore(self, state: GridState) -> None:
        """Do nothing: without virtual time, no reply outlives a round."""

    # ---- work ------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Run Flower's engine until it is told to stop."""

        def backend() -> _flower_on_ray.Backend:
            self._backend = _flower_on_ray.Backend({"client_resources": CLIENT})
            return self._backend

        try:
            self._engine.serve(self._app, backend, self._stopped)
        except BaseException as error:
            self._failure = error.__cause__ or error

    def _taken(self, reply: Message) -> Message:
        """Return a reply as the client made it, and write the state that came with it."""
        node = self._numbers.get(reply.metadata.src_node_id, reply.metadata.src_node_id)
        records.set_source(reply, node)
        if reply.has_error():
            reason, _, details = str(reply.error.reason).partition("\n")
            getLogger("flwr").log(ERROR, "client %d failed: %s\n%s", node - 1, reason, details)
            reply.error = Error(reply.error.code, reason)
            return reply
        reply.content, state = flower_app.split(reply.content)
        client_states.write(self._states, node - 1, state, durable=self._durable)
        return reply


def check(scenario: Scenario, address: str | None = None) -> None:
    """Check, before a run has a folder, that Flower's engine can run a scenario on a cluster.

    Args:
        scenario: The scenario.
        address: Address of the Ray cluster; None: this machine.

    Raises:
        EngineError: The scenario has a network or faults, or no cluster listens at the address.
    """
    for key in ("network", "faults"):
        if getattr(scenario, key) is not None:
            raise EngineError(
                f"scenario {scenario.name!r} has `{key}`, which needs the virtual time of the inline engine; leave out"
                f" `--engine flower`, or run it without: --set {key}=null"
            )
    if address is not None and address != "auto":
        _reach(address)


def _reach(address: str) -> None:
    """Connect once, since Ray itself would retry for minutes.

    Raises:
        EngineError: The address is none, or nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and "/" not in host):
        raise EngineError(f"a Ray cluster's address is HOST:PORT or auto, such as 10.0.0.1:6379; got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"there is no Ray cluster at {address}: {error}; `ray start --head --port={port}` on {host} begins one"
        ) from None


def of_run(
    scenario: Scenario, folder: RunFolder, config: Mapping[str, UserConfigValue], address: str | None = None
) -> FlowerGrid:
    """Return the grid of a run. Clients do not get the path of the run folder, which is on the server's machine.

    Args:
        scenario: The scenario.
        folder: Run folder, which gets the clients' states.
        config: Run configuration of the apps.
        address: Address of the Ray cluster; None: this machine.

    Raises:
        EngineError: The engine cannot run the scenario, or there is no such cluster.
    """
    check(scenario, address)
    return FlowerGrid(
        "fedpress.client.app:app",
        clients=scenario.clients,
        workers=scenario.worker_count,
        run_config={key: value for key, value in config.items() if key != "out"},
        address=address,
        states=folder.client_states,
    )


def _start_ray(address: str | None, workers: int) -> None:
    """Join a cluster, or start Ray on this machine with `workers` CPUs.

    Raises:
        EngineError: There is no such cluster, or it has no CPU for clients.
    """
    quiet: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    os.environ.update(SHARED_GPUS)  # or Ray warns in this process, too
    variables = {**ONE_THREAD, **SHARED_GPUS}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        quiet["num_cpus"] = workers
    try:
        with worker.deaf_to_ctrl_c():
            ray.init(
                address=address or "local",
                logging_level=ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": variables},
                **quiet,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = (
            f"the Ray cluster at {address!r} cannot be joined" if address else "Ray cannot be started on this machine"
        )
        raise EngineError(f"{where}: {error}") from error


def _cpus() -> int:
    """Return the number of CPUs of all machines of the cluster; each CPU runs a client at a time."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return sum(int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"])
