"""Stages of a model, and matching stages of two models, found by the shapes of outputs rather than by names.

A stage is a run of layers whose outputs have the same resolution: the height and width of maps (N, C, H, W), the length
of a sequence (N, L, C), or none of a vector (N, C). Its output is its last activation. A stage without parameters, such
as pooling, and the output of the model do not count. Of sequences, each block of a list of blocks is a stage, such as a
layer of a transformer, whose output is its hidden state.

Attention distributions are recorded where torch computes them, whatever the layers are called: at
`scaled_dot_product_attention`, `multi_head_attention_forward`, and the softmax of scores (N, heads, queries, keys).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedpress.compression.models import architecture
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.reproducible import evaluating


@dataclass
class Recording:
    """Record of the last forward pass.

    Attributes:
        outputs: Each layer, each block of a list, and its output, in the order of execution.
        maps: Attention distributions, (N, heads, queries, keys), in the order of execution, if they are recorded.
    """

    outputs: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)


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
def recording(model: nn.Module, attention: bool = False) -> Iterator[Recording]:
    """Record each forward pass of the model within the block; a new pass clears the record of the last.

    Args:
        model: The model.
        attention: Whether to record attention distributions, too, which takes time and memory.
    """
    record = Recording()
    watch = _Attention(record)

    def begin(_: nn.Module, __: Any) -> None:
        record.outputs.clear()
        record.maps.clear()
        watch.running = True

    def end(*_: Any) -> None:
        watch.running = False

    def after(module: nn.Module, _: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            record.outputs.append((module, first))

    blocks = _blocks(model)
    handles = [model.register_forward_pre_hook(begin), model.register_forward_hook(end, always_call=True)]
    for module in model.modules():
        if module in blocks or not any(True for _ in module.children()):
            handles.append(module.register_forward_hook(after))
    try:
        with watch if attention else nullcontext():
            yield record
    finally:
        for handle in handles:
            handle.remove()


def _blocks(model: nn.Module) -> set[nn.Module]:
    """Return the blocks of a model's lists: of an `nn.Sequential`, those of a class that it has several of."""
    found: set[nn.Module] = set()
    for entries in architecture.block_lists(model).values():
        kinds = Counter(type(entry) for entry in entries)
        listed = isinstance(entries, nn.ModuleList)
        found |= {entry for entry in entries if architecture.is_block(entry) and (listed or kinds[type(entry)] > 1)}
    return found


class _Attention(TorchFunctionMode):
    """Record of the attention distributions in the passes of one model, before dropout."""

    SOFTMAX: Final = (functional.softmax, torch.softmax, Tensor.softmax)

    def __init__(self, record: Recording) -> None:
        super().__init__()
        self.record, self.running = record, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if not self.running:
            return func(*args, **named)
        if func is functional.scaled_dot_product_attention:
            self.record.maps.append(attention_maps(*args, **named))
        elif func is functional.multi_head_attention_forward:
            told = {"training": False, "need_weights": True, "average_attn_weights": False}  # without dropout
            weights: Any = func(*args, **named | told)[1]
            self.record.maps.append(weights if weights.ndim == 4 else weights.unsqueeze(0))
        result = func(*args, **named)
        if func in self.SOFTMAX and isinstance(result, Tensor) and result.ndim == 4:
            if named.get("dim", args[1] if len(args) > 1 else None) in (-1, 3):
                self.record.maps.append(result)
        return result


def attention_maps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the distributions by which `functional.scaled_dot_product_attention` mixes values.

    Args:
        query: Queries, (N, heads, queries, size), or (N, queries, size) of one head.
        key: Keys, (N, heads, keys, size).
        value: Values; not used.
        attn_mask: True where a key is seen, or what is added to the scores; None: all are seen.
        dropout_p: Not used.
        is_causal: Whether a query sees the keys up to its own place only.
        scale: Factor of the scores; None: one over the root of the size.
        enable_gqa: Whether several heads share keys.

    Returns:
        (N, heads, queries, keys); zeros where a query sees nothing.
    """
    if query.ndim == 3:
        query, key = query.unsqueeze(1), key.unsqueeze(1)
        attn_mask = attn_mask.unsqueeze(1) if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    if attn_mask is not None:
        boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if boolean else scores + attn_mask
    blind = scores.isneginf().all(dim=-1, keepdim=True)
    maps: Tensor = scores.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)
    return maps


def stages(model: nn.Module, example: Batch) -> list[Stage]:
    """Return the stages of a model, in order.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))
    >>> stages(model, torch.zeros(2, 1, 8, 8))
    [Stage(place=1, axes=4, channels=4)]

    Args:
        model: Model in any mode; left as it is.
        example: Batch of inputs, (N, ...).
    """
    with evaluating(model), recording(model) as record:
        answers = model_outputs.tensors(model_inputs.call(model, example))
        outputs = list(record.outputs)
    if outputs and any(outputs[-1][1].numel() == answer.numel() for answer in answers):
        outputs.pop()  # the output of the model
    blocks, count = _blocks(model), model_inputs.count(example)
    runs: list[Stage] = []
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
        if module in blocks and tensor.ndim == 3:
            previous = (0, tensor.shape[:0])  # what follows is another stage
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
