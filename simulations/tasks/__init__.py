"""Built-in tasks, each a model with its data, by name in `registry`: `digits`, `fashion_mnist`, `text`, `verses`.

`partition` deals the training data out to clients, `hold_out` draws held-out parts, `fingerprint` tells whether two
processes have the same examples; `template` is the task that
`fedpress init` writes. `architectures`, `king_james`, `labeled_texts` and `text_encoder` are parts of the built-in
tasks.
"""

__all__ = [
    "architectures",
    "digits",
    "fashion_mnist",
    "fingerprint",
    "hold_out",
    "king_james",
    "labeled_texts",
    "partition",
    "registry",
    "template",
    "text",
    "text_encoder",
    "verses",
]
