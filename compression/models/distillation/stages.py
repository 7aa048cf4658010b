"""Stages of a model, and matching stages of two models, found by the shapes of outputs rather than by names.

A stage is a run of layers whose outputs have the same resolution: the height and width of maps (N, C, H, W), the length
of a sequence (N, L, C), or none of a vector (N, C). Its output is its last activation. A stage without parameters, such
as pooling, and the output of the model do not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.reproducible import evaluating


@dataclass
class Recording:
    """Record of the last forward pass.

    Attributes:
        outputs: Each layer and its output, in the order of execution.
        attended: Each layer with a method `maps`, and its input.
    """

    outputs: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    attended: list[tuple[nn.Module, Tensor]] = field(default_factory=list)

    def maps(self) -> list[Tensor]:
        """Return the attention distributions, (N, heads, queries, keys), of all layers with a method `maps`."""
        return [module.maps(inputs) for module, inputs in self.attended]  # type: ignore[operator]


class Stage(NamedTuple):
    """A stage of a model.

    Attributes:
        place: Index of its last activation among the outputs of a `Recording`.
        axes: Number of axes of its output: 4 for maps, 3 for a sequence, 2 for a vector.
        channels: Number of channels of its output.
    """

    place: int
    axes: int
    channels: int


@contextmanager
def recording(model: nn.Module) -> Iterator[Recording]:
    """Record each forward pass of the model within the block; a new pass clears the record of the last."""
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


def stages(model: nn.Module, example: Batch) -> list[Stage]:
    """Return the stages of a model, in order.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))
    >>> stages(model, torch.zeros(2, 1, 8, 8))
    [Stage(place=1, axes=4, channels=4)]

    Args:
        model: Model in any mode; left as it is.
        example: Batch of inputs, (N, ...).
    """
    with evaluating(model), recording(model) as record:
        output = model_outputs.answers(model_inputs.call(model, example))
        outputs = list(record.outputs)
    if outputs and isinstance(output, Tensor) and outputs[-1][1].numel() == output.numel():
        outputs.pop()  # the output of the model
    runs: list[Stage] = []
    count = model_inputs.count(example)
    previous, learns = None, False
    for index, (module, tensor) in enumerate(outputs):
        if tensor.ndim not in (2, 3, 4) or len(tensor) != count:
            continue
        resolution = (tensor.ndim, tensor.shape[2:] if tensor.ndim == 4 else tensor.shape[1:-1])
        if resolution != previous and previous is not None and not learns:
            runs.pop()
        elif resolution == previous:
            runs.pop()
        learns = (resolution == previous and learns) or any(True for _ in module.parameters())
        previous = resolution
        runs.append(Stage(index, tensor.ndim, tensor.shape[1 if tensor.ndim == 4 else -1]))
    return runs if learns else runs[:-1]


def matched(student: list[Stage], teacher: list[Stage]) -> list[tuple[Stage, Stage]]:
    """Pair the stages of a student and a teacher whose outputs are of the same kind, in order.

    Where the numbers of a kind differ, stages at equal relative depth are paired: of two and four, the first with the
    second and the second with the fourth.

    Args:
        student: Stages of the student.
        teacher: Stages of the teacher.
    """
    pairs = []
    for axes in (4, 3, 2):
        of_student = [stage for stage in student if stage.axes == axes]
        of_teacher = [stage for stage in teacher if stage.axes == axes]
        pairs += [(of_student[i], of_teacher[j]) for i, j in aligned(len(of_student), len(of_teacher))]
    return pairs


def aligned(first: int, second: int) -> list[tuple[int, int]]:
    """Pair the indices of two lists so that the elements of a pair end at equal relative depth.

    >>> aligned(2, 4), aligned(3, 2), aligned(0, 5)
    ([(0, 1), (1, 3)], [(1, 0), (2, 1)], [])

    Args:
        first: Length of the first list.
        second: Length of the second list.
    """
    fewer = min(first, second)
    return [
        (math.ceil((part + 1) * first / fewer) - 1, math.ceil((part + 1) * second / fewer) - 1) for part in range(fewer)
    ]
