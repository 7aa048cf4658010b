"""Clients without devices: `inline` (worker processes, the default) and `flower` (Flower's engine on Ray).

`client_grid` is what the two have in common, `client_states` what clients keep; `worker_process` and `flower_app` are
their other ends.
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
