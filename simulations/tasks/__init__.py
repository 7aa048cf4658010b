"""Built-in tasks, each a model with its data, by name in `registry`: `digits`, `fashion_mnist`, `text`.

`partition` deals the training data out to clients, `hold_out` draws held-out parts, `fingerprint` tells whether two
processes have the same examples; `template` is the task that
`fedpress init` writes. `architectures` and `king_james` are parts of the built-in tasks.
"""

__all__ = [
    "architectures",
    "digits",
    "fashion_mnist",
    "fingerprint",
    "hold_out",
    "king_james",
    "partition",
    "registry",
    "template",
    "text",
]
