"""Entropy codes on numpy arrays.

`golomb` codes geometrically distributed integers such as the gaps between positions, `rans` symbols of a known
distribution such as that of a `frequency_table`, `bits` integers of a fixed width.
"""

__all__ = ["bits", "frequency_table", "golomb", "rans"]
