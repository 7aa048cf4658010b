"""Labels of channels: which positions along the axes of a model's tensors belong to the same channel.

Every position along every axis of a prunable layer's tensors is a label. Each operation of a forward pass says which
labels of its operands are the same channel (an addition: the aligned ones; a matrix product: those along the two axes
that it sums over) and which labels its result has (a concatenation: those of its parts in turn; a permutation: the same
along another axis). Label `KEPT` is for positions that are never removed: those of inputs and outputs, constants and
bare parameters, and all that an operation touches which has no rule here. So an unknown operation keeps channels whole
and cannot mix them up.

Labels are joined as in a union-find structure: R. Tarjan, "Efficiency of a Good But Not Linear Set Union Algorithm",
JACM 22(2), 1975.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
        self._parents = np.zeros(1, np.int64)
        self._reasons: dict[int, str] = {}

    def new(self, count: int) -> Labels:
        """Return labels of `count` new channels, (count,); each is larger than those before."""
        labels = np.arange(len(self._parents), len(self._parents) + count)
        self._parents = np.concatenate([self._parents, labels])
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


SUMMED: Final[dict[str, dict[int, int]]] = {
    "mm": {0: 1, 1: 0},
    "addmm": {1: 1, 2: 0},
    "bmm": {0: 2, 1: 1},
    "baddbmm": {1: 2, 2: 1},
    "mv": {0: 1, 1: 0},
    "addmv": {1: 1, 2: 0},
    "dot": {0: 0, 1: 0},
    "linear": {0: -1, 1: 1},
    "convolution": {0: 1},
}
"""Products: the arguments that are summed over, and the axis of each."""

REDUCTIONS: Final = frozenset(
    "sum mean amax amin max min prod var std var_mean std_mean norm linalg_vector_norm logsumexp any all "
    "count_nonzero aminmax median".split()
)
"""Operations that sum up axes, whatever the order along them; an axis is the second argument, or all are."""
NORMALIZATIONS: Final = frozenset("_softmax _log_softmax _safe_softmax".split())
"""Operations along an axis that keep it; the axis is the second argument."""
LAYER_NORMS: Final = frozenset("native_layer_norm _fused_rms_norm".split())
_BATCH_NORMS: Final = frozenset(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
    "miopen_batch_norm _batch_norm_with_update _batch_norm_no_update".split()
)
_ELEMENTWISE: Final = frozenset(
    "hardswish hardswish_ log_sigmoid_forward rrelu_with_noise _prelu_kernel native_dropout _to_copy copy_ clone "
    "contiguous alias detach lift_fresh lift_fresh_copy fill_ zero_ masked_fill masked_fill_ where complex polar real "
    "imag view_as positive bernoulli bernoulli_ uniform_ normal_ zeros_like ones_like empty_like full_like rand_like "
    "randn_like set_data nan_to_num isnan isfinite isinf lerp addcmul addcdiv".split()
)
"""Operations on aligned entries that torch does not mark as such."""
_MADE: Final = frozenset(
    "zeros ones full empty empty_strided new_zeros new_ones new_full new_empty new_empty_strided".split()
)
"""Constants that are the same all over; their sizes may follow those of other tensors."""
_ORDERED: Final = frozenset("cumsum cumprod logcumsumexp cummax cummin sort topk argmax argmin argsort".split())
"""Operations whose result depends on the order along an axis, or on positions there."""
_WINDOWS: Final = re.compile(r"(?:pool|upsample|reflection_pad|replication_pad)\w*?([123])d")
"""Operations on the last one, two or three axes."""


def axis_of(axis: int, dimensions: int) -> int:
    """Return an axis counted from the front."""
    return axis % dimensions if dimensions else 0


def reduced(name: str, tensor: Tensor, args: Sequence[Any], kwargs: Any) -> tuple[list[int], bool]:
    """Return the axes that a reduction sums up, and whether it keeps them with size 1.

    Args:
        name: Operation of `REDUCTIONS`.
        tensor: Its operand.
        args: All its positional arguments.
        kwargs: Its keyword arguments.
    """
    rest = list(args[1:])
    if name in ("norm", "linalg_vector_norm") and rest:  # the order of the norm
        rest = rest[1:]
    axes = kwargs.get("dim", rest[0] if rest and not isinstance(rest[0], bool | torch.dtype) else None)
    keep = bool(kwargs.get("keepdim", rest[1] if len(rest) > 1 and isinstance(rest[1], bool) else False))
    if axes is None or isinstance(axes, list | tuple) and not axes:
        return list(range(tensor.ndim)), keep
    chosen = [axes] if isinstance(axes, int) else list(axes)
    return sorted({axis_of(axis, tensor.ndim) for axis in chosen}), keep


_RULES: Final[dict[str, Callable[..., None]]] = {}
"""Rules of operations, by name: methods of `TensorLabels` with results, then the operation's own arguments."""


Method = TypeVar("Method", bound=Callable[..., None])


def _rule(*names: str) -> Callable[[Method], Method]:
    def register(method: Method) -> Method:
        _RULES.update(dict.fromkeys(names, method))
        return method

    return register


class TensorLabels:
    """Labels of all tensors of a forward pass.

    Args:
        labels: Labels of the tensors that are known before: those of prunable layers.
        sets: Sets of labels.
        parts: Which part is the channel where an operation cuts an axis of distinct channels into parts, by the number
            of the operation in the pass; elsewhere it is the first, such as a head of a fixed number of entries.

    Attributes:
        cuts: Labels at these operations, and the number of parts that could be the channel, by the operation's number.
        factors: Operands of products: a label of the axis that is summed over, and one of the other axis.
        attended: Labels of operands of products by batches, as of the heads of attention.
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

    def follow(self, name: str, pointwise: bool, args: Sequence[Any], kwargs: Any, result: Any, reason: str) -> None:
        """Join and pass on labels by an operation.

        Args:
            name: Name of the operation, such as "mm", without overload.
            pointwise: Whether torch marks it as an operation on aligned entries.
            args: Positional arguments.
            kwargs: Keyword arguments.
            result: What it returned.
            reason: Description, for channels that are kept because of it.
        """
        self._reason = reason
        self._number += 1
        results = [
            part for part in (result if isinstance(result, tuple | list) else (result,)) if isinstance(part, Tensor)
        ]
        if not results:  # a number, which says nothing of channels
            return
        rule = _RULES.get(name)
        match = _WINDOWS.search(name)
        if rule is not None:
            rule(self, results, *args, **kwargs)
        elif name in SUMMED:
            self._product(name, results[0], args)
        elif name in REDUCTIONS:
            self._reduction(name, results, args, kwargs)
        elif name in _MADE:
            self._set(results[0], [self._made(size) for size in results[0].shape])
        elif match is not None and isinstance(args[0], Tensor):
            self._windows(results, args[0], int(match[1]))
        elif pointwise or name in _ELEMENTWISE:
            self._elementwise(results, [*args, *kwargs.values()])
        else:
            for tensor in _tensors([args, list(kwargs.values())]):
                self.keep(tensor, reason)

    # ---- operations ----------------------------------------------------------------------------------------------

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

    def _product(self, name: str, result: Tensor, args: Sequence[Any]) -> None:
        (one, one_axis), (two, two_axis) = SUMMED[name].items()
        first, second = self.axes(args[one]), self.axes(args[two])
        one_axis, two_axis = axis_of(one_axis, len(first)), axis_of(two_axis, len(second))
        self._sets.join(first[one_axis], second[two_axis], self._reason)
        for axes, axis in ((first, one_axis), (second, two_axis)):
            if len(axes) > 1 and len(axes[axis]) and len(axes[axis - 1]):
                self.factors.add((int(axes[axis][0]), int(axes[axis - 1 if axis else -1][0])))
        batch = 1 if name in ("bmm", "baddbmm") else 0
        if batch:
            self.attended += [labels for labels in (*first, *second) if labels.any()]
        for labels, others in zip(first[:batch], second[:batch], strict=True):
            self._join(labels, others)
        rest = [labels for axis, labels in enumerate(second) if axis != two_axis and axis >= batch]
        axes = [labels for axis, labels in enumerate(first) if axis != one_axis] + rest
        added = args[0] if one == 1 else args[2] if name == "linear" and len(args) > 2 else None
        self._set(result, axes)
        if isinstance(added, Tensor):
            for labels, others in zip(reversed(axes), reversed(self.axes(added)), strict=False):
                self._join(labels, others)

    def _reduction(self, name: str, results: list[Tensor], args: Sequence[Any], kwargs: Any) -> None:
        if len(args) > 1 and isinstance(args[1], Tensor):  # the elementwise maximum of two tensors
            self._elementwise(results, args)
            return
        axes, keep = reduced(name, args[0], args, kwargs)
        left = [
            np.zeros(1, np.int64) if axis in axes else labels
            for axis, labels in enumerate(self.axes(args[0]))
            if keep or axis not in axes
        ]
        for result in results:
            self._set(result, left)

    @_rule(*_BATCH_NORMS)
    def _batch_norm(self, results: list[Tensor], tensor: Tensor, *args: Any, **_: Any) -> None:
        axes = self.axes(tensor)
        for tensor in args:
            if isinstance(tensor, Tensor):
                self._join(axes[1], self.axes(tensor)[0])
        self._set(results[0], axes)

    @_rule(*_ORDERED)
    def _ordered(self, results: list[Tensor], tensor: Tensor, *args: Any, **kwargs: Any) -> None:
        numbers = [value for value in (*args, *kwargs.values()) if type(value) is int]
        axes = list(self.axes(tensor))
        for axis in {axis_of(number, tensor.ndim) for number in numbers} or range(tensor.ndim):
            axes[axis] = self._keep(axes[axis])
        for result in results:
            if result.shape == tensor.shape:
                self._set(result, axes)
            else:
                for labels in axes:
                    self._keep(labels)

    def _windows(self, results: list[Tensor], tensor: Tensor, count: int) -> None:
        axes = self.axes(tensor)
        for labels in axes[-count:]:
            self._keep(labels)
        for result in results:
            self._set(result, axes[:-count] + [np.zeros(size, np.int64) for size in result.shape[-count:]])

    @_rule(
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

    @_rule("convolution")
    def _convolution(
        self, results: list[Tensor], image: Tensor, weight: Tensor, bias: Tensor | None, *args: Any, **_: Any
    ) -> None:
        transposed, groups = bool(args[3]), int(args[5])
        axes, (rows, columns, *_kernel) = self.axes(image), self.axes(weight)
        channels = len(axes[1])
        for labels in axes[2:]:
            self._keep(labels)
        inner, outer = (rows, columns) if transposed else (columns, rows)
        if groups == 1:
            self._sets.join(axes[1], inner, self._reason)
        elif groups == channels:  # depthwise: an input channel and its outputs, 1 or more, go together
            multiple = len(results[0].shape) and results[0].shape[1] // groups
            if transposed:
                self._sets.join(axes[1], inner, self._reason)
                self._keep(outer)
                outer = np.repeat(inner, multiple)
            else:
                self._sets.join(np.repeat(axes[1], multiple), outer, self._reason)
        else:  # one channel of each block
            inputs, outputs = channels // groups, results[0].shape[1] // groups
            if transposed:
                self._sets.join(axes[1], inner, self._reason)
                self._sets.join(inner, np.tile(inner[:inputs], groups), self._reason)
                outer = np.tile(outer, groups)
            else:
                self._sets.join(axes[1], np.tile(inner, groups), self._reason)
                self._sets.join(outer, np.tile(outer[:outputs], groups), self._reason)
        if bias is not None:
            self._join(outer, self.axes(bias)[0])
        sizes = results[0].shape[2:]
        self._set(results[0], [axes[0], outer, *(np.zeros(size, np.int64) for size in sizes)])

    @_rule(*LAYER_NORMS)
    def _layer_norm(
        self, results: list[Tensor], tensor: Tensor, shape: Sequence[int], *args: Any, **kwargs: Any
    ) -> None:
        axes = self.axes(tensor)
        for part in (*args, *kwargs.values()):
            if isinstance(part, Tensor):
                for labels, others in zip(axes[-len(shape) :], self.axes(part), strict=True):
                    self._join(labels, others)
        self._set(results[0], axes)

    @_rule("native_group_norm")
    def _group_norm(
        self, results: list[Tensor], tensor: Tensor, weight: Tensor | None, bias: Tensor | None, *args: Any, **_: Any
    ) -> None:
        axes, groups = self.axes(tensor), int(args[3])
        labels = axes[1]
        self._sets.join(labels, np.tile(labels[: len(labels) // groups], groups), self._reason)
        for part in (weight, bias):
            if part is not None:
                self._join(labels, self.axes(part)[0])
        self._set(results[0], axes)

    @_rule(*NORMALIZATIONS)
    def _softmax(self, results: list[Tensor], tensor: Tensor, *_: Any, **__: Any) -> None:
        self._set(results[0], self.axes(tensor))

    @_rule("embedding")
    def _embedding(self, results: list[Tensor], weight: Tensor, indices: Tensor, *_: Any, **__: Any) -> None:
        rows, columns = self.axes(weight)
        self._keep(rows)
        self._set(results[0], [*self.axes(indices), columns])

    @_rule("glu")
    def _glu(self, results: list[Tensor], tensor: Tensor, dim: int = -1) -> None:
        axes = list(self.axes(tensor))
        axis = axis_of(dim, tensor.ndim)
        half = len(axes[axis]) // 2
        self._join(axes[axis][:half], axes[axis][half:])
        axes[axis] = axes[axis][:half]
        self._set(results[0], axes)

    @_rule("transpose", "transpose_")
    def _transpose(self, results: list[Tensor], tensor: Tensor, first: int = 0, second: int = 1) -> None:
        axes = list(self.axes(tensor))
        if axes:
            one, two = axis_of(first, tensor.ndim), axis_of(second, tensor.ndim)
            axes[one], axes[two] = axes[two], axes[one]
        self._set(results[0], axes)

    @_rule("t")
    def _t(self, results: list[Tensor], tensor: Tensor) -> None:
        self._set(results[0], self.axes(tensor)[::-1])

    @_rule("permute")
    def _permute(self, results: list[Tensor], tensor: Tensor, dims: Sequence[int]) -> None:
        axes = self.axes(tensor)
        self._set(results[0], [axes[dim] for dim in dims])

    @_rule("expand")
    def _expand(self, results: list[Tensor], tensor: Tensor, *_: Any, **__: Any) -> None:
        axes = self.axes(tensor)
        axes = [np.zeros(1, np.int64)] * (results[0].ndim - len(axes)) + axes
        left = []
        for labels, size in zip(axes, results[0].shape, strict=True):
            left.append(labels if len(labels) == size else self._made(size))  # equal entries, as many as needed
        self._set(results[0], left)

    @_rule("repeat")
    def _repeat(self, results: list[Tensor], tensor: Tensor, repeats: Sequence[int]) -> None:
        axes = self.axes(tensor)
        axes = [np.zeros(1, np.int64)] * (len(repeats) - len(axes)) + axes
        left = [np.tile(labels, count) for labels, count in zip(axes, repeats, strict=True)]
        self._set(results[0], left)

    @_rule("select")
    def _select(self, results: list[Tensor], tensor: Tensor, dim: int, index: int) -> None:
        axes = list(self.axes(tensor))
        self._keep(axes.pop(axis_of(dim, tensor.ndim)))
        self._set(results[0], axes)

    @_rule("slice")
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

    @_rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")
    def _split(self, results: list[Tensor], tensor: Tensor, _: Any, dim: int = 0) -> None:
        axes, axis = self.axes(tensor), axis_of(dim, tensor.ndim)
        bounds = np.cumsum([part.shape[axis] for part in results])[:-1]
        parts = np.split(axes[axis], bounds)
        if len({len(part) for part in parts}) == 1:  # equal parts stay equal: `chunk` could not cut them else
            for part in parts[1:]:
                self._join(parts[0], part)
        for result, part in zip(results, parts, strict=True):
            self._set(result, [*axes[:axis], part, *axes[axis + 1 :]])

    @_rule("unbind")
    def _unbind(self, results: list[Tensor], tensor: Tensor, dim: int = 0) -> None:
        axes = list(self.axes(tensor))
        self._keep(axes.pop(axis_of(dim, tensor.ndim)))
        for result in results:
            self._set(result, axes)

    @_rule("cat")
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

    @_rule("stack")
    def _stack(self, results: list[Tensor], tensors: Sequence[Tensor], dim: int = 0) -> None:
        axes = list(self.axes(tensors[0]))
        for tensor in tensors[1:]:
            for labels, others in zip(axes, self.axes(tensor), strict=True):
                self._join(labels, others)
        axes.insert(axis_of(dim, results[0].ndim), np.zeros(len(tensors), np.int64))
        self._set(results[0], axes)

    @_rule("flip")
    def _flip(self, results: list[Tensor], tensor: Tensor, dims: Sequence[int]) -> None:
        chosen = {axis_of(dim, tensor.ndim) for dim in dims}
        axes = self.axes(tensor)
        self._set(results[0], [labels[::-1] if axis in chosen else labels for axis, labels in enumerate(axes)])

    @_rule("roll")
    def _roll(self, results: list[Tensor], tensor: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> None:
        chosen = {axis_of(dim, tensor.ndim) for dim in dims} or set(range(tensor.ndim))
        axes = self.axes(tensor)
        self._set(results[0], [self._keep(part) if axis in chosen else part for axis, part in enumerate(axes)])

    @_rule("tril", "triu")
    def _triangle(self, results: list[Tensor], tensor: Tensor, *_: Any) -> None:
        axes = self.axes(tensor)
        self._set(results[0], [*axes[:-2], *(self._keep(labels) for labels in axes[-2:])])

    @_rule("index_select")
    def _index_select(self, results: list[Tensor], tensor: Tensor, dim: int, index: Tensor) -> None:
        axes = list(self.axes(tensor))
        axis = axis_of(dim, tensor.ndim)
        self._keep(axes[axis])
        axes[axis] = np.zeros(results[0].shape[axis], np.int64)
        self._set(results[0], axes)

    @_rule("index", "_unsafe_index")
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

    @_rule("gather")
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

    @_rule("constant_pad_nd")
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

    @_rule("pixel_shuffle")
    def _pixel_shuffle(self, results: list[Tensor], tensor: Tensor, factor: int) -> None:
        axes = list(self.axes(tensor))
        blocks = axes[-3].reshape(-1, factor * factor)
        self._sets.join(np.repeat(blocks[:, 0], factor * factor), blocks.flatten(), self._reason)
        spatial = [np.zeros(size, np.int64) for size in results[0].shape[-2:]]
        for labels in axes[-2:]:
            self._keep(labels)
        self._set(results[0], [*axes[:-3], blocks[:, 0], *spatial])

    @_rule("pixel_unshuffle")
    def _pixel_unshuffle(self, results: list[Tensor], tensor: Tensor, factor: int) -> None:
        axes = list(self.axes(tensor))
        spatial = [np.zeros(size, np.int64) for size in results[0].shape[-2:]]
        for labels in axes[-2:]:
            self._keep(labels)
        self._set(results[0], [*axes[:-3], np.repeat(axes[-3], factor * factor), *spatial])

    @_rule("channel_shuffle", "native_channel_shuffle")
    def _channel_shuffle(self, results: list[Tensor], tensor: Tensor, groups: int) -> None:
        axes = list(self.axes(tensor))
        blocks = axes[1].reshape(groups, -1)
        self._sets.join(np.tile(blocks[0], groups), blocks.flatten(), self._reason)
        axes[1] = blocks.T.flatten()
        self._set(results[0], axes)

    @_rule("unfold")
    def _unfold(self, results: list[Tensor], tensor: Tensor, dim: int, *_: Any) -> None:
        axes = list(self.axes(tensor))
        axis = axis_of(dim, tensor.ndim)
        self._keep(axes[axis])
        axes[axis] = np.zeros(results[0].shape[axis], np.int64)
        self._set(results[0], [*axes, np.zeros(results[0].shape[-1], np.int64)])

    @_rule("im2col")
    def _columns(self, results: list[Tensor], tensor: Tensor, kernel: Sequence[int], *_: Any) -> None:
        axes = self.axes(tensor)
        for labels in axes[-2:]:
            self._keep(labels)
        places = np.zeros(results[0].shape[-1], np.int64)
        self._set(results[0], [*axes[:-3], np.repeat(axes[-3], prod(kernel)), places])

    @_rule("_scaled_dot_product_flash_attention_for_cpu")
    def _attention(
        self, results: list[Tensor], query: Tensor, key: Tensor, value: Tensor, *args: Any, **_: Any
    ) -> None:
        queries, keys, values = self.axes(query), self.axes(key), self.axes(value)
        self._join(queries[-1], keys[-1])
        self._join(keys[-2], values[-2])
        for one, two, three in zip(queries[:-2], keys[:-2], values[:-2], strict=True):
            self._join(one, two)
            self._join(one, three)
        self._set(results[0], [*queries[:-1], values[-1]])


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []


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
