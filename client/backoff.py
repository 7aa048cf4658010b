"""Exponential back-off with jitter, for attempts over the network."""

from __future__ import annotations

import random


class Backoff:
    """Waits that double up to a limit, each drawn between half and all of it, so that a fleet spreads its attempts.

    Args:
        first: Limit of the first wait, in seconds.
        most: Limit of every wait, in seconds.
        draw: Source of the jitter; None: a new one, seeded by the system.
    """

    def __init__(self, first: float, most: float, draw: random.Random | None = None) -> None:
        self._first, self._most = first, most
        self._draw = draw or random.Random()
        self._next = first

    def wait(self) -> float:
        """Return the next wait, in seconds."""
        limit, self._next = self._next, min(self._most, 2 * self._next)
        return limit * self._draw.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start again from the first wait, after a success."""
        self._next = self._first
