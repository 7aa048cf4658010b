"""Clients without devices: `inline` (worker processes, the default) and `flower` (Flower's engine on Ray)."""

__all__ = ["client_grid", "client_states", "flower", "flower_app", "inline", "worker_process"]
