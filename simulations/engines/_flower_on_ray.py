"""Private parts of Flower's simulation engine; tests/test_flower_doors.py lists them."""

from collections.abc import Callable
from threading import Event
from typing import Any, cast

import ray
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID as SUPERLINK_NODE_ID
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid


class Backend(RayBackend):
    """Flower's backend with another end: its own waits for all clients at work, and Ray would restart killed ones."""

    def stop_clients(self) -> None:
        """Kill the processes that are running a client."""
        for actor in list(self.pool._future_to_actor.values()) if self.pool else []:
            ray.kill(cast(Any, actor))  # a handle of it

    def terminate(self) -> None:
        """Kill all other processes of clients, and disconnect from Ray."""
        for actor in self.pool.pool if self.pool else []:
            ray.kill(cast(Any, actor))
        ray.shutdown()


class Engine:
    """Flower's link state, queue and backend for one run.

    Args:
        run: The run.
        clients: Number of nodes to register.

    Attributes:
        grid: The server's end.
        parts: Node id -> index of the client.
    """

    def __init__(self, run: Run, clients: int) -> None:
        self._links = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
        self.grid = InMemoryGrid(state_factory=self._links)
        run.primary_task_id, run.federation_id = 1, NOOP_FEDERATION_ID
        state = self._links.state()
        assert isinstance(state, InMemoryLinkState)
        state.run_ids[run.run_id] = RunRecord(run=run)
        state.task_store[1] = Task(task_id=1, run_id=run.run_id)
        self.grid.set_run(run)
        self.parts = vce_api._register_nodes(clients, self._links)

    def serve(self, app: ClientApp, backend: Callable[[], Backend], stopped: Event) -> None:
        """Hand out orders until `stopped` is set.

        Args:
            app: The ClientApp; a copy travels with each order.
            backend: Makes the backend.
            stopped: Ends the engine.
        """
        contexts = vce_api._register_node_info_stores(self.parts, self.grid.run)
        vce_api.run_api(lambda: app, backend, self.parts, self._links, contexts, stopped, VceMetrics())
