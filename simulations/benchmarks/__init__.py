"""Measurements of this build on this machine: what `fedpress bench` runs, a file each."""

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
    "tiers",
    "warm",
    "wire",
]
