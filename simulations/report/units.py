"""Numbers with units, as tables and figures show them."""


def format_bytes(size: float) -> str:
    """Return a size in decimal units with three significant digits: `1.23 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    digits = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {unit}"


def format_joules(joules: float) -> str:
    """Return an energy with three significant digits: `1.23 kJ`.

    >>> format_joules(1234.5), format_joules(0.0042), format_joules(99.96)
    ('1.23 kJ', '4.2 mJ', '100 J')
    """
    factor, unit = next(((f, u) for f, u in ((1e6, "MJ"), (1e3, "kJ"), (1, "J")) if joules >= 0.9995 * f), (1e-3, "mJ"))
    return f"{joules / factor:.3g} {unit}"
