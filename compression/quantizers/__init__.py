"""Schemes that write a whole update: `qsgd`, `terngrad`, `eden`, `lowrank`; `form` is what they have in common."""

__all__ = ["eden", "form", "lowrank", "qsgd", "terngrad"]
