"""Suggestions in error texts: the allowed names, and the one nearest to what was given."""

import difflib
from collections.abc import Iterable


def choices(allowed: Iterable[str], given: object) -> str:
    """Return the allowed names separated by commas, with the nearest match of what was given, if any.

    Args:
        allowed: Valid names.
        given: The invalid value.

    >>> choices(["top_k", "random_k"], "topk")
    "top_k, random_k; did you mean 'top_k'?"
    """
    allowed = list(allowed)
    near = nearest(given, allowed)
    return ", ".join(allowed) + (f"; did you mean {near!r}?" if near else "")


def nearest(given: object, allowed: Iterable[str]) -> str | None:
    """Return the allowed name that is nearest to what was given; None: none is near.

    Args:
        given: The invalid value.
        allowed: Valid names.

    >>> nearest("Top-K", ["random_k", "top_k"])
    'top_k'
    """
    allowed = list(allowed)
    near = difflib.get_close_matches(str(given).lower().replace("-", "_"), allowed, 1) or difflib.get_close_matches(
        str(given), allowed, 1
    )
    return near[0] if near else None
