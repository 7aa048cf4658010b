"""Outputs of a model: one tensor, or tuples, lists and mappings of tensors, such as logits by name.

Where outputs are a mapping with the entry `LOGITS`, as Hugging Face's models return it, that entry is the model's
answers. What holds no tensors, such as a cache of keys and values, is no output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from fedpress.compression.errors import FedpressError
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.inputs import Batch

IGNORED: Final = -100
"""Target of a place that has none, such as padding: the index that torch's cross-entropy ignores."""
LOGITS: Final = "logits"
"""Entry of outputs by name that holds the answers."""

Outputs = Any
"""Outputs of a model: a tensor (N, ...), or a tuple, list or mapping of such."""


class EvaluationError(FedpressError, ValueError):
    """A model cannot be evaluated: its outputs, or what the task makes of them, are not defined example by example."""


class Logits(dict[str, Tensor]):
    """Outputs that are logits alone, of a model that returns more.

    >>> Logits(logits=torch.zeros(2, 3)).logits.shape
    torch.Size([2, 3])
    """

    @property
    def logits(self) -> Tensor:
        """The answers."""
        return self[LOGITS]


def answers(outputs: Outputs) -> Any:
    """Return the logits of outputs by name; other outputs as they are.

    Args:
        outputs: Outputs of a model.
    """
    if isinstance(outputs, Mapping) and isinstance(outputs.get(LOGITS), Tensor):
        return outputs[LOGITS]
    return outputs


def with_answers(outputs: Outputs, logits: Tensor) -> Outputs:
    """Return outputs of the same kind that are these logits alone.

    Args:
        outputs: Outputs of a model, whose `answers` are a tensor.
        logits: Logits in their place.
    """
    return Logits(logits=logits) if isinstance(outputs, Mapping) else logits


def class_second(outputs: Outputs) -> Any:
    """Return the answers with the classes second, (N, classes) or (N, classes, L), as torch's losses expect them.

    Of outputs by name, logits of sequences are (N, L, classes), and come with the classes last; a tensor is returned as
    it is.

    >>> class_second({"logits": torch.zeros(2, 7, 3)}).shape, class_second(torch.zeros(2, 3, 7)).shape
    (torch.Size([2, 3, 7]), torch.Size([2, 3, 7]))

    Args:
        outputs: Outputs of a model.
    """
    logits = answers(outputs)
    if isinstance(outputs, Mapping) and isinstance(logits, Tensor) and logits.ndim == 3:
        return logits.movedim(-1, 1)
    return logits


def tensors(outputs: Outputs) -> list[Tensor]:
    """Return the tensors of a model's outputs, in order.

    Raises:
        EvaluationError: There is none.
    """
    if isinstance(outputs, Mapping):
        return [tensor for part in outputs.values() if _holds_tensors(part) for tensor in tensors(part)]
    if isinstance(outputs, Sequence) and not isinstance(outputs, str):
        return [tensor for part in outputs if _holds_tensors(part) for tensor in tensors(part)]
    if outputs is None or isinstance(outputs, Tensor):
        return [] if outputs is None else [outputs]
    raise EvaluationError(
        f"the model returns a {type(outputs).__name__}, expected a tensor, or a tuple, list or mapping of tensors"
        f"{': return vars(outputs), a mapping of its fields' if is_dataclass(outputs) else ''}"
    )


def _holds_tensors(part: Any) -> bool:
    return isinstance(part, Tensor | Mapping | Sequence) and not isinstance(part, str)


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Return the outputs for consecutive pieces of a batch as outputs for the batch.

    Where sequences differ in length, shorter ones are followed by zeros.

    Args:
        parts: Outputs of one structure.
    """
    first = parts[0]
    if not _holds_tensors(first):
        return None
    if isinstance(first, Tensor):
        return padded(parts)
    if isinstance(first, Mapping):
        return _like(first, {key: joined([part[key] for part in parts]) for key in first})
    members = [joined(members) for members in zip(*parts, strict=True)]
    return type(first)(*members) if hasattr(first, "_fields") else type(first)(members)


def padded(parts: Sequence[Tensor], value: float = 0.0, *, before: bool = False) -> Tensor:
    """Return tensors (N, ...) as one; where sizes of other axes differ, `value` follows to the largest.

    >>> padded([torch.ones(1, 2), torch.ones(1, 3)]).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]

    Args:
        parts: Tensors of as many axes.
        value: What follows.
        before: Whether it goes before the rest.
    """
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    most = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]

    def filled(part: Tensor) -> Tensor:
        more = [size - got for size, got in zip(most, part.shape[1:], strict=True)]
        around = [each for missing in reversed(more) for each in ((missing, 0) if before else (0, missing))]
        return functional.pad(part, around, value=value)

    return torch.cat([filled(part) for part in parts])


def _like(outputs: Mapping[Any, Any], parts: dict[Any, Any]) -> Outputs:
    """Return parts as a mapping of the class of some outputs, such as one whose entries are attributes, too."""
    made: Any = type(outputs)
    return parts if made is dict else made(**parts)


def mapped(outputs: Outputs, function: Callable[[Tensor], Tensor]) -> Outputs:
    """Return outputs of the same structure, each tensor replaced.

    Args:
        outputs: Outputs of a model.
        function: Maps a tensor to its replacement.
    """
    if not _holds_tensors(outputs):
        return None
    if isinstance(outputs, Tensor):
        return function(outputs)
    if isinstance(outputs, Mapping):
        return _like(outputs, {key: mapped(part, function) for key, part in outputs.items()})
    members = [mapped(part, function) for part in outputs]
    return type(outputs)(*members) if hasattr(outputs, "_fields") else type(outputs)(members)


def rows_of(tensor: Tensor, count: int, rows: slice | Tensor) -> Tensor:
    """Return the part of a tensor that belongs to some of `count` examples; all of it, if it is not of examples.

    Args:
        tensor: Tensor (count, ...) or (count * L, ...).
        count: Number of examples.
        rows: Those wanted, as a slice or as indices.
    """
    if not tensor.ndim or not len(tensor) or len(tensor) % count:
        return tensor
    return tensor.reshape(count, -1, *tensor.shape[1:])[rows].flatten(0, 1)


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Return whether all pairs of two sequences of outputs are `close`."""
    return len(left) == len(right) and all(close(*pair) for pair in zip(left, right, strict=True))


def close(left: Tensor, right: Tensor) -> bool:
    """Return whether two outputs differ by rounding only; infinities and NaN must be in the same places.

    Sums in another order differ by some units in the last place of the largest entries, and these add up over layers:
    the tolerance is the root of the dtype's precision.

    Args:
        left: Tensor of any shape.
        right: Tensor to compare with it.
    """
    if left.shape != right.shape:
        return False
    if not left.is_floating_point():
        return torch.equal(left, right)
    tolerance = torch.finfo(left.dtype).eps ** 0.5
    first, second = left.double(), right.double()
    finite = first[first.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def fitted(targets: Tensor, outputs: Outputs, batch: Batch) -> Tensor:
    """Return targets of sequences in the length of the batch that the outputs are of; others as they are.

    A batch is padded to its own longest sequence, targets (N, T) are held as long as the longest of all. Places that
    have no target are cut off; where the batch is padded further than the targets, they are followed by `IGNORED`.

    >>> batch = {"ids": torch.zeros(1, 2, dtype=torch.int64)}
    >>> fitted(torch.tensor([[4, 5, -100]]), torch.zeros(1, 2, 9), batch).tolist()
    [[4, 5]]

    Args:
        targets: Targets of the batch, (N, ...).
        outputs: Outputs for it.
        batch: Its inputs.
    """
    logits = answers(outputs)
    by_name = isinstance(outputs, Mapping) and isinstance(logits, Tensor) and logits.ndim == 3
    size = logits.shape[1] if by_name else model_inputs.length(batch)
    if size is None or targets.ndim < 2 or targets.is_floating_point() or targets.shape[1] == size:
        return targets
    if not isinstance(logits, Tensor) or size not in logits.shape[1:]:
        return targets
    more = size - targets.shape[1]
    if more > 0:
        return targets if targets.shape[1] in logits.shape[1:] else functional.pad(targets, (0, more), value=IGNORED)
    for kept, cut in ((slice(0, size), slice(size, None)), (slice(-size, None), slice(0, -size))):  # padded on the left
        if bool((targets[:, cut] == IGNORED).all()):
            return targets[:, kept]
    return targets
