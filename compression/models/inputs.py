"""Inputs of a model: one tensor, tensors by name, or examples that are read when a batch of them is needed.

A model that takes tensors by name (ids, an attention mask) is called with keyword arguments. Whoever handles inputs
goes through these functions, and need not know which of the three kinds they are.

>>> words = {"input_ids": torch.tensor([[1, 2], [3, 0]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}
>>> count(words), take(words, torch.tensor([1]))["input_ids"].tolist()
(2, [[3, 0]])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

Batch: TypeAlias = Any
"""Inputs in memory: a tensor (N, ...), or a mapping of tensors by the name of the model's argument, each (N, ...)."""


@runtime_checkable
class Stored(Protocol):
    """Inputs that are read when they are needed, such as texts on a disk, tokenized and padded batch by batch.

    Law: the same rows give the same tensors, in any process; rows in another order give them in that order.
    """

    def __len__(self) -> int:
        """Return N, the number of examples."""

    def take(self, rows: Tensor) -> Batch:
        """Return the inputs of some examples.

        Args:
            rows: Indices, int64 (M,).
        """


Inputs: TypeAlias = Any
"""What `Examples.inputs` may be: a `Batch`, or `Stored`."""


def count(inputs: Inputs) -> int:
    """Return N, the number of examples."""
    return len(next(iter(inputs.values()))) if isinstance(inputs, Mapping) else len(inputs)


def take(inputs: Inputs, rows: Tensor | slice) -> Batch:
    """Return the inputs of some examples.

    Args:
        inputs: Inputs of N examples.
        rows: Indices, int64 (M,), or a slice.
    """
    if isinstance(inputs, Tensor):
        return inputs[rows]
    if isinstance(inputs, Mapping):
        return {name: tensor[rows] for name, tensor in inputs.items()}
    return inputs.take(torch.arange(len(inputs))[rows])


def first(inputs: Inputs, number: int = 1) -> Batch:
    """Return the inputs of the first examples.

    Args:
        inputs: Inputs of N examples.
        number: How many; all, if there are fewer.
    """
    return take(inputs, slice(0, number))


def mapped(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Return inputs of the same kind, each tensor replaced.

    Args:
        batch: Inputs in memory.
        function: Maps a tensor to its replacement.
    """
    return function(batch) if isinstance(batch, Tensor) else {name: function(part) for name, part in batch.items()}


def to(batch: Batch, device: torch.device | str) -> Batch:
    """Return inputs on a device.

    Args:
        batch: Inputs in memory.
        device: The device.
    """
    return mapped(batch, lambda tensor: tensor.to(device))


def call(model: nn.Module, batch: Batch) -> Any:
    """Return the model's outputs for inputs: tensors by name are its keyword arguments.

    Args:
        model: The model.
        batch: Inputs in memory.
    """
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


def pieces(inputs: Inputs, most: int) -> Iterator[Batch]:
    """Yield the inputs in order, in pieces of nearly equal size.

    >>> [count(piece) for piece in pieces(torch.zeros(65), 64)]
    [33, 32]

    Args:
        inputs: Inputs of N examples.
        most: Largest size of a piece.
    """
    number = count(inputs)
    for rows in torch.tensor_split(torch.arange(number), max(1, -(-number // most))):
        yield take(inputs, slice(int(rows[0]), int(rows[-1]) + 1)) if len(rows) else take(inputs, slice(0, 0))


def length(batch: Batch) -> int | None:
    """Return L of sequences (N, L), which may differ from batch to batch; None: the inputs are no such tensors by name.

    >>> length({"ids": torch.zeros(2, 7), "mask": torch.zeros(2, 7), "age": torch.zeros(2)}), length(torch.zeros(2, 7))
    (7, None)

    Args:
        batch: Inputs in memory.
    """
    if not isinstance(batch, Mapping):
        return None
    lengths = {tensor.shape[1] for tensor in batch.values() if tensor.ndim > 1 and not tensor.is_floating_point()}
    return lengths.pop() if len(lengths) == 1 else None


def present(batch: Batch) -> Tensor | None:
    """Return which places of sequences hold something, bool (N, L), as their mask says; None: they have no mask.

    A mask is a tensor of the sequences' shape, of zeros and ones, whose name says that it is one.

    Args:
        batch: Inputs in memory.
    """
    size = length(batch)
    for name, part in batch.items() if size is not None else ():
        if "mask" in name and part.shape[1:] == (size,) and bool(((part == 0) | (part == 1)).all()):
            return part != 0
    return None
