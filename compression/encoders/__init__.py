"""Encoders: an update becomes the bytes of a payload, and what is not sent is kept.

`encoder` is the interface with the plain ones; `selection` says which entries (`top_k`: the exact largest);
`error_feedback`, `momentum`, `decay`, `ef21`, `cafe`, `float16_residual` and `wrappers` take an encoder and return
one; `sign_sgd` and `powersgd` are methods of their own; `recipes` are published methods as chains of these.
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
