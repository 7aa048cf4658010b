"""State of a client between rounds: its encoder's state, the last answer, and a replica of the server's model.

`memory` is the state as a value, `stores` keep it (in files, of which `parts` are those of large arrays, or in Flower's
context), and `replica` brings the model to the version that an order names.
"""

__all__ = ["memory", "parts", "replica", "stores"]
