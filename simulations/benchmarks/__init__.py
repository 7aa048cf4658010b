"""Benchmarks of `fedpress bench`, one module each; each has `run()`, and `rows()` or `facts()` that format its figures.

`byte_counter` counts bytes of HTTP connections, `codec_data` has vectors for the codec, `outside` measures other
libraries' codecs in environments of their own.
"""

__all__ = [
    "byte_counter",
    "codec",
    "codec_data",
    "engine",
    "hub",
    "memory",
    "outside",
    "paired",
    "reuse",
    "scale",
    "size",
    "tiers",
    "warm",
    "wire",
]
