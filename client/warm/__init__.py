"""A process that trains round after round, so that a node need not import torch anew for each message.

`trainer` is that process, `hand_over` how a node's own process gives it a message.
"""

__all__ = ["hand_over", "trainer"]
