"""Suggestions for what was probably meant: the allowed names in a row, and the nearest to the one that was given."""

import difflib
from collections.abc import Iterable


def choices(allowed: Iterable[str], given: object) -> str:
    """Return the allowed values as a list, and the nearest to what was given.

    Args:
        allowed: Names that would do.
        given: What stood in their place.

    >>> choices(["top_k", "random_k"], "topk")
    "top_k, random_k; did you mean 'top_k'?"
    """
    allowed = list(allowed)
    near = difflib.get_close_matches(str(given).lower().replace("-", "_"), allowed, 1) or difflib.get_close_matches(
        str(given), allowed, 1
    )
    return ", ".join(allowed) + (f"; did you mean {near[0]!r}?" if near else "")
