"""Rounds of one model: sampling of nodes, orders, exchange of messages, aggregation, accounting.

Start with `federation`, which holds the parts together. `sampling` draws nodes, `orders` writes orders and verifies
replies, `base_transfer` brings pretrained weights to nodes without a copy, `exchange` and `threaded_grid` send and
wait, `aggregate` sums updates, `stepper` takes the step (and once more from a journal), `metrics` averages metrics,
`accounting` counts every byte, `outcome` says when a run has failed. Settings stand in `settings`, `closing` and
`buffered`.
"""

__all__ = [
    "accounting",
    "aggregate",
    "base_transfer",
    "buffered",
    "closing",
    "exchange",
    "federation",
    "metrics",
    "orders",
    "outcome",
    "sampling",
    "settings",
    "stepper",
    "threaded_grid",
]
