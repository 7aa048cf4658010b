"""Sets of labels: which channels are one, and which are never removed.

As in a union-find structure: R. Tarjan, "Efficiency of a Good But Not Linear Set Union Algorithm", JACM 22(2), 1975.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
"""Labels of the positions along one axis, (size,)."""
Axes = list[Labels]
"""Labels of a tensor, axis by axis."""

KEPT: Final = 0
"""Label of positions that are never removed."""


class LabelSets:
    """Disjoint sets of labels: those of one set are one channel, those in the set of `KEPT` are never removed.

    >>> sets = LabelSets()
    >>> first, second = sets.new(2), sets.new(2)
    >>> sets.join(first, second, "sum")
    >>> sets.join(second[1:], np.zeros(1, np.int64), "output")
    >>> sets.of(first).tolist(), sets.of(second).tolist(), sets.reason(second[1])
    ([1, 0], [1, 0], 'output')
    """

    def __init__(self) -> None:
        self._parents = np.zeros(1, np.int64)  # with room for labels to come, each its own parent
        self._count = 1
        self._reasons: dict[int, str] = {}

    def new(self, count: int) -> Labels:
        """Return labels of `count` new channels, (count,); each is larger than those before."""
        labels = np.arange(self._count, self._count + count)
        self._count += count
        if self._count > len(self._parents):
            more = np.arange(len(self._parents), 2 * self._count)
            self._parents = np.concatenate([self._parents, more])
        return labels

    def of(self, labels: Labels) -> Labels:
        """Return the least label of each label's set, of the same shape."""
        roots = self._parents[labels]
        while True:
            above = self._parents[roots]
            if np.array_equal(above, roots):
                return roots
            roots = above

    def join(self, first: Labels, second: Labels, reason: str) -> None:
        """Join the sets of aligned labels.

        Args:
            first: Labels, (n,).
            second: Labels, (n,).
            reason: What joins them, for those that are kept from now on.
        """
        ones, others = self.of(first), self.of(second)
        while (differ := ones != others).any():
            low, high = np.minimum(ones, others)[differ], np.maximum(ones, others)[differ]
            self._parents[high] = low  # the parent is always the smaller one, so there are no cycles
            for root in np.unique(high[self._parents[high] == KEPT]).tolist():
                self._reasons.setdefault(root, reason)
            ones, others = self.of(ones), self.of(others)

    def reason(self, label: int) -> str:
        """Return why a label is in the set of `KEPT`; empty where it is not."""
        while label != KEPT and (above := int(self._parents[label])) not in (KEPT, label):
            label = above
        return self._reasons.get(int(label), "")
