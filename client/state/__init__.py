"""State of a client between rounds: its encoder's state, the last answer, and a replica of the server's model.

`memory` is the state as a value, `stores` keep it (in files, of which `parts` are those of large arrays, or in Flower's
context), `replica` brings the model to the version that an order names, and `bases` are the pretrained weights that the
device was sent.
"""

__all__ = ["bases", "memory", "parts", "replica", "stores"]
