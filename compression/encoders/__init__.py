"""Encoders: an update -> the bytes of a payload, with the unsent rest in a state that is handed back.

`encoder` has the interface and the stateless encoders, `selection` the choice of the entries to send (`top_k`: the
exact largest). `error_feedback`, `momentum`, `decay`, `ef21`, `cafe`, `float16_residual` and `wrappers` take an encoder
and return one. `sign_sgd` and `powersgd` are methods of their own; `recipes` composes published methods of these parts.
"""

__all__ = [
    "cafe",
    "decay",
    "ef21",
    "encoder",
    "error_feedback",
    "float16_residual",
    "momentum",
    "powersgd",
    "recipes",
    "selection",
    "sign_sgd",
    "top_k",
    "wrappers",
]
