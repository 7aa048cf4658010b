"""Warm trainer: one process per node that has torch, model and data loaded, and forks for each message.

`trainer` is that process; `hand_over` stands in for Flower's `flwr-clientapp` and passes its call on.
"""

__all__ = ["hand_over", "trainer"]
