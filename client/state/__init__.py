"""What a client keeps between rounds: its encoder's state and the server's model.

`stores` are where it is kept, `memory` is what is kept, `replica` is the model brought to the server's version.
"""

__all__ = ["memory", "replica", "stores"]
