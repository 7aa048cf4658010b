"""Rules of operations that move entries without a change: views, parts, concatenations, orders."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpress.compression.models.pruning.channel_rules import Rules, axis_of, rule
from fedpress.compression.models.pruning.label_sets import Axes, Labels


class Views(Rules):
    """Rules of views."""

    @rule(
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "view_copy",
        "unsqueeze",
        "unsqueeze_",
        "squeeze",
        "squeeze_",
    )
    def _reshape(self, results: list[Tensor], tensor: Tensor, *_: Any, **__: Any) -> None:
        result = results[0]
        axes = self.axes(tensor)
        left: Axes = []
        for sources, sizes in _blocks(list(tensor.shape), list(result.shape)):
            left += self._cut([axes[axis] for axis in sources], sizes)
        self._set(result, left)

    def _cut(self, axes: Axes, sizes: list[int]) -> Axes:
        """Return the labels of axes that become others of the same number of entries."""
        if [len(labels) for labels in axes] == sizes:
            return axes
        roots = [self._sets.of(labels) for labels in axes]
        live = [index for index, labels in enumerate(roots) if labels.any()]
        if len(live) > 1:  # of a merged axis one is the channels': the one that belongs to layers, else the first
            own = [index for index in live if (roots[index] < self._first).any()] or live
            for index in live:
                if index != own[0]:
                    self._keep(axes[index])
            live = own[:1]
        if not live or prod(sizes) <= 1:
            return [np.zeros(size, np.int64) for size in sizes]
        shape = [len(labels) for labels in axes]
        index = live[0]
        spread = roots[index].reshape([-1 if axis == index else 1 for axis in range(len(axes))])
        entries = np.broadcast_to(spread, shape).reshape(sizes)
        wide = [axis for axis, size in enumerate(sizes) if size > 1]
        for axis in wide:
            lines = np.moveaxis(entries, axis, 0).reshape(sizes[axis], -1)
            if (lines == lines[:, :1]).all():
                return [lines[:, 0] if other == axis else np.zeros(size, np.int64) for other, size in enumerate(sizes)]
        self.cuts[self._number] = entries.flatten(), len(wide)
        axis = wide[self._parts.get(self._number, 0)]
        lines = np.moveaxis(entries, axis, 0).reshape(sizes[axis], -1)
        self._sets.join(np.repeat(lines[:, 0], lines.shape[1]), lines.flatten(), self._reason)
        return [lines[:, 0] if other == axis else np.zeros(size, np.int64) for other, size in enumerate(sizes)]

    @rule("glu")
    def _glu(self, results: list[Tensor], tensor: Tensor, dim: int = -1) -> None:
        axes = list(self.axes(tensor))
        axis = axis_of(dim, tensor.ndim)
        half = len(axes[axis]) // 2
        self._join(axes[axis][:half], axes[axis][half:])
        axes[axis] = axes[axis][:half]
        self._set(results[0], axes)

    @rule("transpose", "transpose_")
    def _transpose(self, results: list[Tensor], tensor: Tensor, first: int = 0, second: int = 1) -> None:
        axes = list(self.axes(tensor))
        if axes:
            one, two = axis_of(first, tensor.ndim), axis_of(second, tensor.ndim)
            axes[one], axes[two] = axes[two], axes[one]
        self._set(results[0], axes)

    @rule("t")
    def _t(self, results: list[Tensor], tensor: Tensor) -> None:
        self._set(results[0], self.axes(tensor)[::-1])

    @rule("permute")
    def _permute(self, results: list[Tensor], tensor: Tensor, dims: Sequence[int]) -> None:
        axes = self.axes(tensor)
        self._set(results[0], [axes[dim] for dim in dims])

    @rule("expand")
    def _expand(self, results: list[Tensor], tensor: Tensor, *_: Any, **__: Any) -> None:
        axes = self.axes(tensor)
        axes = [np.zeros(1, np.int64)] * (results[0].ndim - len(axes)) + axes
        left = []
        for labels, size in zip(axes, results[0].shape, strict=True):
            left.append(labels if len(labels) == size else self._made(size))  # equal entries, as many as needed
        self._set(results[0], left)

    @rule("repeat")
    def _repeat(self, results: list[Tensor], tensor: Tensor, repeats: Sequence[int]) -> None:
        axes = self.axes(tensor)
        axes = [np.zeros(1, np.int64)] * (len(repeats) - len(axes)) + axes
        left = [np.tile(labels, count) for labels, count in zip(axes, repeats, strict=True)]
        self._set(results[0], left)

    @rule("select")
    def _select(self, results: list[Tensor], tensor: Tensor, dim: int, index: int) -> None:
        axes = list(self.axes(tensor))
        self._keep(axes.pop(axis_of(dim, tensor.ndim)))
        self._set(results[0], axes)

    @rule("slice")
    def _slice(
        self,
        results: list[Tensor],
        tensor: Tensor,
        dim: int = 0,
        start: int | None = None,
        end: int | None = None,
        step: int = 1,
    ) -> None:
        axes = list(self.axes(tensor))
        axis = axis_of(dim, tensor.ndim)
        axes[axis] = axes[axis][slice(start, end, step)]
        self._set(results[0], axes)

    @rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")
    def _split(self, results: list[Tensor], tensor: Tensor, _: Any, dim: int = 0) -> None:
        axes, axis = self.axes(tensor), axis_of(dim, tensor.ndim)
        bounds = np.cumsum([part.shape[axis] for part in results])[:-1]
        parts = np.split(axes[axis], bounds)
        if len({len(part) for part in parts}) == 1:  # equal parts stay equal: `chunk` could not cut them else
            for part in parts[1:]:
                self._join(parts[0], part)
        for result, part in zip(results, parts, strict=True):
            self._set(result, [*axes[:axis], part, *axes[axis + 1 :]])

    @rule("unbind")
    def _unbind(self, results: list[Tensor], tensor: Tensor, dim: int = 0) -> None:
        axes = list(self.axes(tensor))
        self._keep(axes.pop(axis_of(dim, tensor.ndim)))
        for result in results:
            self._set(result, axes)

    @rule("cat")
    def _cat(self, results: list[Tensor], tensors: Sequence[Tensor], dim: int = 0) -> None:
        parts = [self.axes(tensor) for tensor in tensors if tensor.ndim == results[0].ndim]  # an old kind of empty
        axis = axis_of(dim, results[0].ndim)
        axes = list(parts[0])
        for part in parts[1:]:
            for other, (labels, others) in enumerate(zip(axes, part, strict=True)):
                if other != axis:
                    self._join(labels, others)
        axes[axis] = np.concatenate([part[axis] for part in parts])
        self._set(results[0], axes)

    @rule("stack")
    def _stack(self, results: list[Tensor], tensors: Sequence[Tensor], dim: int = 0) -> None:
        axes = list(self.axes(tensors[0]))
        for tensor in tensors[1:]:
            for labels, others in zip(axes, self.axes(tensor), strict=True):
                self._join(labels, others)
        axes.insert(axis_of(dim, results[0].ndim), np.zeros(len(tensors), np.int64))
        self._set(results[0], axes)

    @rule("flip")
    def _flip(self, results: list[Tensor], tensor: Tensor, dims: Sequence[int]) -> None:
        chosen = {axis_of(dim, tensor.ndim) for dim in dims}
        axes = self.axes(tensor)
        self._set(results[0], [labels[::-1] if axis in chosen else labels for axis, labels in enumerate(axes)])

    @rule("roll")
    def _roll(self, results: list[Tensor], tensor: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> None:
        chosen = {axis_of(dim, tensor.ndim) for dim in dims} or set(range(tensor.ndim))
        axes = self.axes(tensor)
        self._set(results[0], [self._keep(part) if axis in chosen else part for axis, part in enumerate(axes)])

    @rule("tril", "triu")
    def _triangle(self, results: list[Tensor], tensor: Tensor, *_: Any) -> None:
        axes = self.axes(tensor)
        self._set(results[0], [*axes[:-2], *(self._keep(labels) for labels in axes[-2:])])

    @rule("index_select")
    def _index_select(self, results: list[Tensor], tensor: Tensor, dim: int, index: Tensor) -> None:
        axes = list(self.axes(tensor))
        axis = axis_of(dim, tensor.ndim)
        self._keep(axes[axis])
        axes[axis] = np.zeros(results[0].shape[axis], np.int64)
        self._set(results[0], axes)

    @rule("index", "_unsafe_index")
    def _index(self, results: list[Tensor], tensor: Tensor, indices: Sequence[Tensor | None]) -> None:
        axes = self.axes(tensor)
        kept: list[tuple[int, Labels]] = []  # of the axes that are not indexed, in their order
        used: list[int] = []
        axis = 0
        for index in indices:
            width = index.ndim if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
            if index is not None:
                self.keep(index, self._reason)
                for labels in axes[axis : axis + width]:
                    self._keep(labels)
                used += range(axis, axis + width)
            axis += width
        kept = [(number, labels) for number, labels in enumerate(axes) if number not in used]
        width = results[0].ndim - len(kept)
        adjacent = used == list(range(used[0], used[-1] + 1)) if used else True
        front = used[0] if used and adjacent else 0
        left = [labels for _, labels in kept]
        new = [np.zeros(size, np.int64) for size in results[0].shape[front : front + width]]
        self._set(results[0], left[:front] + new + left[front:])

    @rule("gather")
    def _gather(self, results: list[Tensor], tensor: Tensor, dim: int, index: Tensor, **_: Any) -> None:
        axis = axis_of(dim, tensor.ndim)
        left: Axes = []
        for other, (labels, others) in enumerate(zip(self.axes(tensor), self.axes(index), strict=True)):
            if other == axis or len(labels) != len(others):
                self._keep(labels)
                left.append(self._keep(others))
            else:
                self._join(labels, others)
                left.append(labels)
        self._set(results[0], left)

    @rule("constant_pad_nd")
    def _pad(self, results: list[Tensor], tensor: Tensor, pad: Sequence[int], *_: Any) -> None:
        axes = list(self.axes(tensor))
        for number in range(len(pad) // 2):
            axis, before, after = tensor.ndim - 1 - number, pad[2 * number], pad[2 * number + 1]
            labels = axes[axis]
            if before < 0 or after < 0:
                labels = labels[max(0, -before) : len(labels) - max(0, -after)]
            ends = (np.zeros(max(0, count), np.int64) for count in (before, after))
            axes[axis] = np.concatenate([next(ends), labels, next(ends)])
        self._set(results[0], axes)

    @rule("pixel_shuffle")
    def _pixel_shuffle(self, results: list[Tensor], tensor: Tensor, factor: int) -> None:
        axes = list(self.axes(tensor))
        blocks = axes[-3].reshape(-1, factor * factor)
        self._sets.join(np.repeat(blocks[:, 0], factor * factor), blocks.flatten(), self._reason)
        spatial = [np.zeros(size, np.int64) for size in results[0].shape[-2:]]
        for labels in axes[-2:]:
            self._keep(labels)
        self._set(results[0], [*axes[:-3], blocks[:, 0], *spatial])

    @rule("pixel_unshuffle")
    def _pixel_unshuffle(self, results: list[Tensor], tensor: Tensor, factor: int) -> None:
        axes = list(self.axes(tensor))
        spatial = [np.zeros(size, np.int64) for size in results[0].shape[-2:]]
        for labels in axes[-2:]:
            self._keep(labels)
        self._set(results[0], [*axes[:-3], np.repeat(axes[-3], factor * factor), *spatial])

    @rule("channel_shuffle", "native_channel_shuffle")
    def _channel_shuffle(self, results: list[Tensor], tensor: Tensor, groups: int) -> None:
        axes = list(self.axes(tensor))
        blocks = axes[1].reshape(groups, -1)
        self._sets.join(np.tile(blocks[0], groups), blocks.flatten(), self._reason)
        axes[1] = blocks.T.flatten()
        self._set(results[0], axes)

    @rule("unfold")
    def _unfold(self, results: list[Tensor], tensor: Tensor, dim: int, *_: Any) -> None:
        axes = list(self.axes(tensor))
        axis = axis_of(dim, tensor.ndim)
        self._keep(axes[axis])
        axes[axis] = np.zeros(results[0].shape[axis], np.int64)
        self._set(results[0], [*axes, np.zeros(results[0].shape[-1], np.int64)])

    @rule("im2col")
    def _columns(self, results: list[Tensor], tensor: Tensor, kernel: Sequence[int], *_: Any) -> None:
        axes = self.axes(tensor)
        for labels in axes[-2:]:
            self._keep(labels)
        places = np.zeros(results[0].shape[-1], np.int64)
        self._set(results[0], [*axes[:-3], np.repeat(axes[-3], prod(kernel)), places])


def _blocks(before: list[int], after: list[int]) -> list[tuple[list[int], list[int]]]:
    """Return the axes that a view merges and cuts, in blocks: axes of the operand, and sizes of the result.

    >>> _blocks([2, 6, 4], [2, 2, 3, 4]), _blocks([2, 3, 1, 5], [6, 5])
    ([([0], [2]), ([1], [2, 3]), ([2], [4])], [([0, 1], [6]), ([2, 3], [5])])
    """
    if prod(before) == 0:
        return [(list(range(len(before))), after)]
    blocks: list[tuple[list[int], list[int]]] = []
    first = second = 0
    while first < len(before) or second < len(after):
        sources, sizes, left, right = [], [], 1, 1
        while first < len(before) or second < len(after):
            if (left <= right and first < len(before)) or second >= len(after):
                left *= before[first]
                sources.append(first)
                first += 1
            else:
                right *= after[second]
                sizes.append(after[second])
                second += 1
            if left == right and sources and sizes and not (left == 1 and (first < len(before) or second < len(after))):
                break
        blocks.append((sources, sizes))
    return blocks
