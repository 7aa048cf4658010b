"""Where the time of a run goes: seconds by phase, each second in one of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Timer:
    """A stopwatch with several hands, of which one moves: while a phase is inside another, the outer one stands still.

    Law: the seconds of all phases sum to the time spent in any of them.

    >>> phases = Timer()
    >>> with phases.of("step"):
    ...     replies = list(phases.each("replies", [1, 2]))
    >>> sorted(phases.seconds)
    ['replies', 'step']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._within: list[str] = []
        self._since = 0.0

    def taken(self) -> dict[str, float]:
        """Return the seconds so far, and count from zero."""
        self._pass()
        seconds, self.seconds = self.seconds, {}
        return seconds

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the time of the context as this phase's."""
        self._pass()
        self._within.append(name)
        try:
            yield
        finally:
            self._pass()
            self._within.pop()

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; the time that it takes to get each is this phase's."""
        iterator = iter(items)
        while True:
            with self.of(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _pass(self) -> None:
        now = time.monotonic()
        if self._within:
            self.seconds[self._within[-1]] = self.seconds.get(self._within[-1], 0.0) + now - self._since
        self._since = now
