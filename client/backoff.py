"""Waiting between attempts."""

from __future__ import annotations

import random


class Backoff:
    """Waiting times that double up to a limit, each drawn between half and whole: a fleet must not come all at once.

    Args:
        first: Seconds of the first wait, at most.
        most: Seconds that no wait exceeds.
        draw: For the randomness.
    """

    def __init__(self, first: float, most: float, draw: random.Random | None = None) -> None:
        self._first, self._most = first, most
        self._draw = draw or random.Random()
        self._next = first

    def wait(self) -> float:
        """Return how long to wait now, in seconds."""
        limit, self._next = self._next, min(self._most, 2 * self._next)
        return limit * self._draw.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._next = self._first
