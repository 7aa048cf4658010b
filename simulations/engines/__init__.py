"""Simulation engines: `inline` (worker processes, the default) and `flower` (Flower's engine on Ray).

Both are a `flwr.serverapp.Grid` (`client_grid`) and store what clients keep in files (`client_states`). Their clients
run in `worker_process` (parent's end: `worker`) and `flower_app`; `shared_records` holds the model that workers share.
"""

__all__ = [
    "client_grid",
    "client_states",
    "flower",
    "flower_app",
    "inline",
    "shared_records",
    "worker",
    "worker_process",
]
