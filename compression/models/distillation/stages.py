"""The stages of a model, and which of two models play the same role: found by what layers put out, not by names.

A stage is a run of layers whose outputs have the same resolution: the height and width of maps (N, C, H, W), the length
of a sequence (N, L, C), or none of a vector (N, C). What it puts out is its last activation. A stage without a
parameter, such as a pooling, says nothing new and does not count; nor does the model's own output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from fedpress.compression.models.reproducible import evaluating


@dataclass
class Recording:
    """What happened in the last forward pass.

    Attributes:
        outputs: Of all layers, with the layer, in the order in which they ran.
        attended: The inputs of layers with a method `maps`, with the layer.
    """

    outputs: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    attended: list[tuple[nn.Module, Tensor]] = field(default_factory=list)

    def maps(self) -> list[Tensor]:
        """The attention distributions, (N, heads, queries, keys), of all layers that have a method `maps`."""
        return [module.maps(inputs) for module, inputs in self.attended]  # type: ignore[operator]


class Stage(NamedTuple):
    """One stage.

    Attributes:
        place: Of its last activation among the outputs of a `Recording`.
        axes: Of what it puts out: 4 for maps, 3 for a sequence, 2 for a vector.
        channels: How many.
    """

    place: int
    axes: int
    channels: int


@contextmanager
def recording(model: nn.Module) -> Iterator[Recording]:
    """Record each forward pass of the model within the block; a new pass begins a new record."""
    record = Recording()

    def begin(_: nn.Module, __: Any) -> None:
        record.outputs.clear()
        record.attended.clear()

    def after(module: nn.Module, _: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            record.outputs.append((module, first))

    def attend(module: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        record.attended.append((module, inputs[0]))

    handles = [model.register_forward_pre_hook(begin)]
    for module in model.modules():
        if callable(getattr(module, "maps", None)):
            handles.append(module.register_forward_hook(attend))
        if not any(True for _ in module.children()):
            handles.append(module.register_forward_hook(after))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def stages(model: nn.Module, example: Tensor) -> list[Stage]:
    """Return the stages of a model, in order.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))
    >>> stages(model, torch.zeros(2, 1, 8, 8))
    [Stage(place=1, axes=4, channels=4)]

    Args:
        model: In any mode; nothing of it is changed.
        example: A batch as it is called with, (N, ...).
    """
    with evaluating(model), recording(model) as record:
        output = model(example)
        outputs = list(record.outputs)
    if outputs and isinstance(output, Tensor) and outputs[-1][1].numel() == output.numel():
        outputs.pop()  # the answer itself
    runs: list[Stage] = []
    role, learns = None, False
    for index, (module, tensor) in enumerate(outputs):
        if tensor.ndim not in (2, 3, 4) or len(tensor) != len(example):
            continue
        resolution = (tensor.ndim, tensor.shape[2:] if tensor.ndim == 4 else tensor.shape[1:-1])
        if resolution != role and role is not None and not learns:
            runs.pop()
        elif resolution == role:
            runs.pop()
        learns = (resolution == role and learns) or any(True for _ in module.parameters())
        role = resolution
        runs.append(Stage(index, tensor.ndim, tensor.shape[1 if tensor.ndim == 4 else -1]))
    return runs if learns else runs[:-1]


def matched(student: list[Stage], teacher: list[Stage]) -> list[tuple[Stage, Stage]]:
    """Pair the stages of a student and a teacher that put out the same kind of thing, in order.

    Where one has more of a kind, those are taken that end an equal part of the way: of four and two, the second and
    the fourth with the first and the second.
    """
    pairs = []
    for axes in (4, 3, 2):
        mine = [stage for stage in student if stage.axes == axes]
        theirs = [stage for stage in teacher if stage.axes == axes]
        pairs += [(mine[first], theirs[second]) for first, second in aligned(len(mine), len(theirs))]
    return pairs


def aligned(first: int, second: int) -> list[tuple[int, int]]:
    """Pair the indices of two lists of these lengths so that each pair ends an equal part of the way.

    >>> aligned(2, 4), aligned(3, 2), aligned(0, 5)
    ([(0, 1), (1, 3)], [(1, 0), (2, 1)], [])
    """
    fewer = min(first, second)
    return [
        (math.ceil((part + 1) * first / fewer) - 1, math.ceil((part + 1) * second / fewer) - 1) for part in range(fewer)
    ]
