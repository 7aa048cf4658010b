"""Sizes that a model's code keeps as numbers, such as how many heads a projection is cut into.

`x.view(n, length, self.heads, self.head_size)`: with fewer heads in the weights, `self.heads` must follow, and
`self.head_size` must not. Which number is which, their values do not tell (8 heads of 8 entries), but where they are
used does: during a traced forward pass each whole number that a layer has is a `Tagged` one, and the axis of the
result that gets its size has the labels of the channels along it (`channel_labels`). A number whose axis has two
positions for each unit of a group falls by two with each unit that goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedpress.compression.models import architecture
from fedpress.compression.models.pruning.channel_labels import Labels, LabelSets, TensorLabels


class CodeSize(NamedTuple):
    """A number that follows the units of a group.

    Attributes:
        name: Path of the layer and name of its attribute.
        per_unit: How much it falls with each unit.
    """

    name: str
    per_unit: int


class Tagged(int):
    """Whole number that knows which attribute it is.

    Attributes:
        name: Path of the layer and name of its attribute.
    """

    name: str

    def __new__(cls, value: int, name: str) -> Tagged:
        """Return the number.

        Args:
            value: The number.
            name: Path of the layer and name of its attribute.
        """
        number = super().__new__(cls, value)
        number.name = name
        return number


@contextmanager
def tagged(model: nn.Module) -> Iterator[None]:
    """Run a block in which whole numbers that layers of a model have are `Tagged`, and put them back.

    Args:
        model: The model; numbers of torch's own layers stay, which follow their tensors by themselves.
    """
    before = []
    for path, module in model.named_modules():
        if isinstance(module, (*architecture.RESIZABLE, nn.MultiheadAttention)):
            continue
        for attribute, value in vars(module).items():
            if type(value) is int and value > 1:
                before.append((module, attribute, value))
                vars(module)[attribute] = Tagged(value, f"{path}.{attribute}".lstrip("."))
    try:
        yield
    finally:
        for module, attribute, value in before:
            if isinstance(vars(module).get(attribute), Tagged):
                vars(module)[attribute] = value


class Noted(TorchFunctionMode):
    """Mode that notes which axes tagged numbers are the sizes of.

    Args:
        labels: Labels of the tensors of this pass.

    Attributes:
        axes: Labels along the axes that a number was the size of, by the number's name.
    """

    def __init__(self, labels: TensorLabels) -> None:
        super().__init__()
        self._labels = labels
        self.axes: dict[str, list[Labels]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Execute one operation."""
        result = func(*args, **(kwargs or {}))
        given = [*args, *(kwargs or {}).values()]
        if any(isinstance(number, Tagged) for number in _numbers(given)):
            tensors = result if isinstance(result, tuple | list) else (result,)
            tensor = next((part for part in tensors if isinstance(part, Tensor)), None)
            if tensor is not None:
                self._note(given, tensor)
        return result

    def _note(self, given: list[Any], tensor: Tensor) -> None:
        axes, numbers = self._labels.axes(tensor), list(_numbers(given))
        for place, number in enumerate(numbers):
            if not isinstance(number, Tagged):
                continue
            # The size of which axis of the result: in a shape by its place, in an index too; else an axis is named.
            named = [place] if len(numbers) == tensor.ndim else _places(given, number, tensor.ndim)
            named += [other for other in numbers if not isinstance(other, Tagged)]
            fitting = [axis for axis in named if -tensor.ndim <= axis < tensor.ndim and len(axes[axis]) == number]
            if not fitting:
                fitting = [axis for axis, labels in enumerate(axes) if len(labels) == number]
                fitting = fitting if len(fitting) == 1 else []
            self.axes.setdefault(number.name, []).extend(axes[axis] for axis in fitting[:1])


def _places(given: Sequence[Any], number: Tagged, dimensions: int) -> list[int]:
    """Return the axis of an index, such as x[..., :number], that a number is a bound of."""
    for index in given:
        for place, part in enumerate(index) if isinstance(index, tuple) else ():
            if isinstance(part, slice) and any(bound is number for bound in (part.start, part.stop)):
                rest = len(index) - place
                return [dimensions - rest if any(other is Ellipsis for other in index[:place]) else place]
    return []


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, slice):
        yield from _numbers([value.start, value.stop, value.step])
    elif isinstance(value, list | tuple):
        yield from (number for part in value for number in _numbers(part))


def per_root(axes: Mapping[str, list[Labels]], sets: LabelSets) -> Callable[[Labels], list[CodeSize]]:
    """Return a function from the roots of a group's units to the numbers that follow them.

    Args:
        axes: Labels along axes by the number that was their size.
        sets: Sets of labels.
    """
    counts: dict[str, dict[int, int]] = {}
    for name, noted in axes.items():
        each = []
        for labels in noted:
            roots, times = np.unique(sets.of(labels), return_counts=True)
            each.append(dict(zip(roots.tolist(), times.tolist(), strict=True)))
        live = [found for found in each if set(found) != {0}]
        if live and len(live) == len(each) and all(found == live[0] for found in live):
            counts[name] = live[0]

    def of(roots: Labels) -> list[CodeSize]:
        found = []
        for name, times in counts.items():
            positions = {times.get(root, 0) for root in roots.tolist()}
            if len(positions) == 1 and (per_unit := positions.pop()):
                found.append(CodeSize(name, per_unit))
        return found

    return of
