"""Wall-clock time of a run by phase; each second counts for one phase."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Timer:
    """Stopwatch for nested phases: while an inner phase runs, the outer one is paused.

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
        """Return the seconds by phase so far, and start again from zero."""
        self._pass()
        seconds, self.seconds = self.seconds, {}
        return seconds

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the time of the context as that of phase `name`."""
        self._pass()
        self._within.append(name)
        try:
            yield
        finally:
            self._pass()
            self._within.pop()

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and count the time of obtaining each as that of a phase.

        Args:
            name: Name of the phase.
            items: Source of the items; the time between them is not counted.
        """
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
