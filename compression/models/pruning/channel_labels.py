"""Labels of channels: which positions along the axes of a model's tensors belong to the same channel.

Every position along every axis of a prunable layer's tensors is a label. Each operation of a forward pass says which
labels of its operands are the same channel (an addition: the aligned ones; a matrix product: those along the two axes
that it sums over) and which labels its result has (a concatenation: those of its parts in turn; a permutation: the same
along another axis). Label `KEPT` is for positions that are never removed: those of inputs and outputs, constants and
bare parameters, and all that an operation touches which has no rule here. So an unknown operation keeps channels whole
and cannot mix them up.

The rules of operations that only move entries are in `channel_views`, what all rules use in `channel_rules`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from fedpress.compression.models.pruning.channel_rules import RULES, rule
from fedpress.compression.models.pruning.channel_rules import axis_of as axis_of
from fedpress.compression.models.pruning.channel_views import Views
from fedpress.compression.models.pruning.label_sets import KEPT as KEPT
from fedpress.compression.models.pruning.label_sets import Axes as Axes
from fedpress.compression.models.pruning.label_sets import Labels as Labels
from fedpress.compression.models.pruning.label_sets import LabelSets as LabelSets

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


class TensorLabels(Views):
    """Labels of all tensors of a forward pass.

    Args:
        labels: Labels of the tensors that are known before: those of prunable layers.
        sets: Sets of labels.
        parts: Which part is the channel where an operation cuts an axis of distinct channels into parts, by the number
            of the operation in the pass; elsewhere it is the first, such as a head of a fixed number of entries.

    Attributes:
        cuts: Labels at these operations, and the number of parts that could be the channel, by the operation's number.
        factors: Operands of products: a label of the axis that is summed over, and one of another axis.
        attended: Labels of the matrices in products by batches: entries of the heads of attention, which are batches.
    """

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
        rule = RULES.get(name)
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

    def _product(self, name: str, result: Tensor, args: Sequence[Any]) -> None:
        (one, one_axis), (two, two_axis) = SUMMED[name].items()
        first, second = self.axes(args[one]), self.axes(args[two])
        one_axis, two_axis = axis_of(one_axis, len(first)), axis_of(two_axis, len(second))
        self._sets.join(first[one_axis], second[two_axis], self._reason)
        for operand, summed in ((first, one_axis), (second, two_axis)):
            live = [int(labels[labels > 0][0]) if labels.any() else KEPT for labels in operand]
            self.factors.update((live[summed], label) for axis, label in enumerate(live) if axis != summed)
        batch = 1 if name in ("bmm", "baddbmm") else 0
        if batch:
            self.attended += [labels for labels in (*first[1:], *second[1:]) if labels.any()]
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

    @rule(*_BATCH_NORMS)
    def _batch_norm(self, results: list[Tensor], tensor: Tensor, *args: Any, **_: Any) -> None:
        axes = self.axes(tensor)
        for tensor in args:
            if isinstance(tensor, Tensor):
                self._join(axes[1], self.axes(tensor)[0])
        self._set(results[0], axes)

    @rule(*_ORDERED)
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

    @rule("convolution")
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

    @rule(*LAYER_NORMS)
    def _layer_norm(
        self, results: list[Tensor], tensor: Tensor, shape: Sequence[int], *args: Any, **kwargs: Any
    ) -> None:
        axes = self.axes(tensor)
        for part in (*args, *kwargs.values()):
            if isinstance(part, Tensor):
                for labels, others in zip(axes[-len(shape) :], self.axes(part), strict=True):
                    self._join(labels, others)
        self._set(results[0], axes)

    @rule("native_group_norm")
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

    @rule(*NORMALIZATIONS)
    def _softmax(self, results: list[Tensor], tensor: Tensor, *_: Any, **__: Any) -> None:
        self._set(results[0], self.axes(tensor))

    @rule("embedding")
    def _embedding(self, results: list[Tensor], weight: Tensor, indices: Tensor, *_: Any, **__: Any) -> None:
        rows, columns = self.axes(weight)
        self._keep(rows)
        self._set(results[0], [*self.axes(indices), columns])

    @rule("_scaled_dot_product_flash_attention_for_cpu")
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
