"""Quantizers of a whole update: `qsgd`, `terngrad` and `eden` (unbiased), `lowrank` (the form of PowerSGD).

Each has a `Form`, which reads the body of a payload, and the first three a `scheme(...)`, which writes it; both
interfaces are in `form`. `encoders.encoder.quantized` makes an encoder of a scheme.
"""

__all__ = ["eden", "form", "lowrank", "qsgd", "terngrad"]
