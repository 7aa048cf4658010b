"""Entropy codes on numpy arrays.

`golomb` codes gaps, `rans` symbols by a `frequency_table`, `bits` numbers of fixed width.
"""

__all__ = ["bits", "frequency_table", "golomb", "rans"]
