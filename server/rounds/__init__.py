"""One round: who takes part, what is asked, what comes back, what it cost.

`sampling` chooses, `orders` asks, `exchange` and `threaded_grid` send and wait, `aggregate` adds up, `metrics`
weighs, `accounting` counts every byte.
"""

__all__ = [
    "accounting",
    "aggregate",
    "buffered",
    "closing",
    "exchange",
    "federation",
    "metrics",
    "orders",
    "sampling",
    "settings",
    "threaded_grid",
]
