"""Numbers with units, as tables and figures show them."""

from fedpress.compression.ledger import format_bytes as format_bytes


def format_joules(joules: float) -> str:
    """Return an energy with three significant digits: `1.23 kJ`.

    >>> format_joules(1234.5), format_joules(0.0042), format_joules(99.96)
    ('1.23 kJ', '4.2 mJ', '100 J')
    """
    factor, unit = next(((f, u) for f, u in ((1e6, "MJ"), (1e3, "kJ"), (1, "J")) if joules >= 0.9995 * f), (1e-3, "mJ"))
    return f"{joules / factor:.3g} {unit}"
