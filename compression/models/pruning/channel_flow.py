"""Forward passes in which channels are followed, operation by operation, or left out.

`Flow` is a torch dispatch mode: it sees every operation below autograd, whoever calls it, and hands it to
`channel_labels`. The cost is that of one forward pass and some microseconds an operation; there is no search that could
fail to end, and a pass that takes too long is given up with the name of the layer where it was.

`Absent` computes, at full size, what a model without some of its channels must answer. Only where an operation takes
several channels together does it matter that they are absent: products that sum over them get zeros in their place,
and norms, softmax and reductions along them are computed of the others. That is exact also where a zero would count,
as in the mean and the variance of a layer norm.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from fedpress.compression.errors import FedpressError
from fedpress.compression.models.pruning import channel_labels
from fedpress.compression.models.pruning.channel_labels import Labels, LabelSets, TensorLabels

_DRAWS: Final = frozenset(
    "bernoulli bernoulli_ uniform_ normal normal_ rand randn rand_like randn_like randint randint_like random_ "
    "randperm multinomial exponential_ native_dropout".split()
)


class PruneError(FedpressError, ValueError):
    """The model cannot be pruned."""


class Steady(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Mode in which nothing is drawn at random: two passes can be compared, also where dropout is always active.

    Args:
        seconds: Time after which the pass is given up.

    Attributes:
        place: Path of the layer that is running; `placed` sets it.

    Raises:
        PruneError: In a pass that takes longer.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave torch.compile alone, whose import takes seconds: nothing is compiled here."""
        return False

    def __init__(self, seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self.place = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Execute one operation."""
        given = dict(kwargs or {})
        namespace, _, rest = str(func.name()).partition("::")
        name = rest.partition(".")[0] if namespace == "aten" else f"{namespace}.{rest}"
        if time.monotonic() > self._deadline:
            raise PruneError(
                f"one forward pass takes longer than {self._seconds:g} s; it was in layer {self.place!r}. Give a"
                " shorter example or a smaller model, or raise `trace_seconds`"
            )
        result = self._executed(name, func, args, given)
        if name in _DRAWS:
            result = _constant(name, args, result)
        self._after(name, func, args, given, result)
        return result

    def _executed(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _after(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        """Note the result of an operation."""


class Flow(Steady):  # type: ignore[no-untyped-call]
    """Mode in which the labels of channels are followed.

    Args:
        labels: Labels of the pass.
        seconds: Time after which the pass is given up.
    """

    def __init__(self, labels: TensorLabels, seconds: float) -> None:
        super().__init__(seconds)
        self.labels = labels

    def _after(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        reason = f"{name} in layer {self.place!r}" if self.place else name
        self.labels.follow(name, torch.Tag.pointwise in func.tags, args, kwargs, result, reason)


class Absent(Flow):  # type: ignore[no-untyped-call]
    """Mode in which channels are followed, and some of them count for nothing.

    Args:
        labels: Labels of the pass.
        sets: Sets of labels.
        removed: Labels of the channels that are left out, one of each set.
        seconds: Time after which the pass is given up.
    """

    def __init__(self, labels: TensorLabels, sets: LabelSets, removed: Labels, seconds: float) -> None:
        super().__init__(labels, seconds)
        self._sets = sets
        roots = sets.of(removed)
        self._removed = np.zeros(int(roots.max(initial=0)) + 1, bool)  # by label: a table is read faster than searched
        self._removed[roots] = True

    def _executed(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if name in channel_labels.SUMMED:
            given = list(args)
            for index, axis in channel_labels.SUMMED[name].items():
                given[index] = self._zeroed(args[index], axis)
            return func(*given, **kwargs)
        if name in channel_labels.REDUCTIONS and not (len(args) > 1 and isinstance(args[1], Tensor)):
            axes, _ = channel_labels.reduced(name, args[0], args, kwargs)
            return func(self._without(args[0], axes), *args[1:], **kwargs)
        if name in channel_labels.NORMALIZATIONS:
            axis = channel_labels.axis_of(args[1], args[0].ndim)
            return self._restored(args[0], [axis], func(self._without(args[0], [axis]), *args[1:], **kwargs))
        if name in channel_labels.LAYER_NORMS:
            return self._layer_norm(func, *args, **kwargs)
        if name == "native_group_norm":
            return self._group_norm(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _gone(self, labels: Labels) -> NDArray[np.bool_]:
        """Return which positions are left out."""
        roots = self._sets.of(labels)
        return self._removed[np.minimum(roots, len(self._removed) - 1)] & (roots < len(self._removed))

    def _left(self, labels: Labels) -> Tensor | None:
        """Return the indices of positions that are left; None: all."""
        gone = self._gone(labels)
        return torch.from_numpy(np.flatnonzero(~gone)) if gone.any() else None

    def _zeroed(self, tensor: Tensor, axis: int) -> Tensor:
        axis = channel_labels.axis_of(axis, tensor.ndim)
        gone = self._gone(self.labels.axes(tensor)[axis])
        return tensor.index_fill(axis, torch.from_numpy(np.flatnonzero(gone)), 0) if gone.any() else tensor

    def _without(self, tensor: Tensor, axes: Sequence[int]) -> Tensor:
        labels = self.labels.axes(tensor)
        for axis in axes:
            if (left := self._left(labels[axis])) is not None:
                tensor = tensor.index_select(axis, left)
        return tensor

    def _restored(self, whole: Tensor, axes: Sequence[int], part: Tensor) -> Tensor:
        """Return a result at full size, with zeros where positions of the operand were left out."""
        labels = self.labels.axes(whole)
        for axis in axes:
            if (left := self._left(labels[axis])) is not None:
                shape = [*part.shape[:axis], len(labels[axis]), *part.shape[axis + 1 :]]
                part = part.new_zeros(shape).index_copy_(axis, left, part)
        return part

    def _layer_norm(self, func: Any, tensor: Tensor, shape: Sequence[int], *args: Any, **kwargs: Any) -> Any:
        axes = list(range(tensor.ndim - len(shape), tensor.ndim))
        part = self._without(tensor, axes)
        rest = [self._without(arg, range(arg.ndim)) if isinstance(arg, Tensor) else arg for arg in args]
        first, *others = func(part, list(part.shape[-len(shape) :]), *rest, **kwargs)
        return (self._restored(tensor, axes, first), *others)

    def _group_norm(
        self,
        func: Any,
        tensor: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        count: int,
        channels: int,
        places: int,
        groups: int,
        epsilon: float,
    ) -> Any:
        part = self._without(tensor, [1]).contiguous()
        scale, shift = (None if each is None else self._without(each, [0]) for each in (weight, bias))
        first, *others = func(part, scale, shift, count, part.shape[1], places, groups, epsilon)
        return (self._restored(tensor, [1], first), *others)


def _constant(name: str, args: Sequence[Any], result: Any) -> Any:
    """Return a constant in place of what was drawn."""
    if name == "native_dropout":
        return args[0].clone(), torch.ones_like(result[1])
    return result.fill_(0.5 if result.is_floating_point() else 0)


@contextmanager
def placed(model: nn.Module, mode: Steady) -> Iterator[None]:
    """Run a block with the mode, which learns the path of the layer that is running.

    Fused kernels for inference are off, whose insides no mode can see.

    Args:
        model: Model that is called in the block.
        mode: The mode.
    """
    stack = [""]

    def entered(path: str) -> Any:
        def hook(*_: Any) -> None:
            stack.append(path)
            mode.place = path

        return hook

    def left(*_: Any) -> None:
        stack.pop()
        mode.place = stack[-1]

    hooks = []
    for path, module in model.named_modules():
        hooks += [module.register_forward_pre_hook(entered(path)), module.register_forward_hook(left)]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), mode:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for hook in hooks:
            hook.remove()
