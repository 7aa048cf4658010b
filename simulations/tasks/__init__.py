"""Tasks that come with fedpress: a model with its data each, by name in `registry`.

`partition` deals the data out to clients, `hold_out` keeps some back; `template` is a task of your own to start from.
"""

__all__ = [
    "architectures",
    "digits",
    "fashion_mnist",
    "hold_out",
    "king_james",
    "partition",
    "registry",
    "template",
    "text",
]
