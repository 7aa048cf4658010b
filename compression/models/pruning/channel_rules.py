"""What all rules of operations have in common: labels of tensors, and their registry by the operation's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
from torch import Tensor

from fedpress.compression.models.pruning.label_sets import Axes, Labels, LabelSets

RULES: Final[dict[str, Callable[..., None]]] = {}
"""Rules of operations, by name: methods of `TensorLabels` with results, then the operation's own arguments."""


Method = TypeVar("Method", bound=Callable[..., None])


def rule(*names: str) -> Callable[[Method], Method]:
    """Register a method as the rule of operations."""

    def register(method: Method) -> Method:
        RULES.update(dict.fromkeys(names, method))
        return method

    return register


def axis_of(axis: int, dimensions: int) -> int:
    """Return an axis counted from the front."""
    return axis % dimensions if dimensions else 0


class Rules:
    """Labels of the tensors of a pass, and how they are joined.

    Args:
        labels: Labels of the tensors that are known before: those of prunable layers.
        sets: Sets of labels.
        parts: Which part is the channel where an operation cuts an axis of distinct channels into parts, by the number
            of the operation in the pass; elsewhere it is the first, such as a head of a fixed number of entries.
    """

    def __init__(
        self, labels: Iterable[tuple[Tensor, Axes]], sets: LabelSets, parts: Mapping[int, int] | None = None
    ) -> None:
        self._axes = {id(tensor): (tensor, axes) for tensor, axes in labels}  # holds the tensors: ids stay unique
        self._first = int(sets.new(1)[0])
        self._sets, self._parts = sets, parts or {}
        self._reason, self._number = "", 0
        self.cuts: dict[int, tuple[Labels, int]] = {}
        self.factors: set[tuple[int, int]] = set()
        self.attended: list[Labels] = []

    def axes(self, tensor: Tensor) -> Axes:
        """Return the labels of a tensor, axis by axis."""
        known = self._axes.get(id(tensor))
        if known is None:
            return [np.zeros(size, np.int64) for size in tensor.shape]
        return known[1]

    def keep(self, tensor: Tensor, reason: str) -> None:
        """Keep all positions of a tensor."""
        for labels in self.axes(tensor):
            self._sets.join(labels, np.zeros_like(labels), reason)

    def _set(self, tensor: Tensor, axes: Axes) -> None:
        assert [len(labels) for labels in axes] == list(tensor.shape), (self._reason, tensor.shape)
        # A single channel that was cut out of others is never removed: of an axis of size 1 it could not be told
        # whether it is that channel, or broadcast.
        self._axes[id(tensor)] = tensor, [self._keep(labels) if len(labels) == 1 else labels for labels in axes]

    def _join(self, first: Labels, second: Labels) -> None:
        """Join aligned labels; an axis of size 1 is broadcast along the other."""
        if len(first) == len(second) > 1:
            self._sets.join(first, second, self._reason)

    def _made(self, size: int) -> Labels:
        """Return labels of an axis of equal entries, of which there may be as many as are needed."""
        return self._sets.new(size) if size > 1 else np.zeros(size, np.int64)

    def _keep(self, labels: Labels) -> Labels:
        self._sets.join(labels, np.zeros_like(labels), self._reason)
        return np.zeros_like(labels)

    def _elementwise(self, results: list[Tensor], arguments: Sequence[Any]) -> None:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        for result in results:
            axes = [np.zeros(size, np.int64) for size in result.shape]
            known = [False] * len(axes)
            for tensor in tensors:
                offset = result.ndim - tensor.ndim
                for axis, labels in enumerate(self.axes(tensor), offset):
                    if axis < 0 or len(labels) != len(axes[axis]):
                        continue
                    if known[axis]:
                        self._join(axes[axis], labels)
                    else:
                        axes[axis], known[axis] = labels, True
            self._set(result, axes)
