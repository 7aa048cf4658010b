"""Inputs of a model: one tensor, tensors by name, or examples that are read when a batch of them is needed.

A model that takes tensors by name (ids, an attention mask) is called with keyword arguments. Whoever handles inputs
goes through these functions, and need not know which of the three kinds they are.

>>> words = {"input_ids": torch.tensor([[1, 2], [3, 0]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}
>>> count(words), take(words, torch.tensor([1]))["input_ids"].tolist()
(2, [[3, 0]])
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fedpress.compression.errors import FedpressError

SINGLE: Final = "input"
"""Name of an input that is one tensor, where all inputs have names."""
MASK, PADDING = "mask", "pad"
"""Parts of the name of a tensor that says where sequences have ended; with the second, ones are padding, as in torch's
`key_padding_mask`, and without it what counts, as in Hugging Face's `attention_mask`."""
LABELS: Final = ("label", "labels")
"""Names by which collators return what is no input."""


class InputsError(FedpressError, ValueError):
    """Inputs are not what a model can be called with."""


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


class Rows:
    """Some rows of stored inputs, which are read when they are needed as well.

    Args:
        source: Stored inputs of N examples; of other rows, those of which they are.
        rows: Indices, int64 (M,).

    Attributes:
        source: What is read.
        rows: The rows' indices in it.
    """

    def __init__(self, source: Stored, rows: Tensor) -> None:
        self.source: Stored = source.source if isinstance(source, Rows) else source
        self.rows: Tensor = source.rows[rows] if isinstance(source, Rows) else rows

    def __len__(self) -> int:
        """Return M, the number of rows."""
        return len(self.rows)

    def take(self, rows: Tensor) -> Batch:
        """Return the inputs of some of the rows, as `Stored` defines."""
        return self.source.take(self.rows[rows])


def count(inputs: Inputs) -> int:
    """Return N, the number of examples."""
    return len(next(iter(inputs.values()))) if isinstance(inputs, Mapping) else len(inputs)


def memory_bytes(inputs: Inputs) -> int:
    """Return the bytes that inputs take in memory; of those that are stored, none are counted.

    >>> memory_bytes({"ids": torch.zeros(2, 3, dtype=torch.int64), "age": torch.zeros(2)})
    56

    Args:
        inputs: Inputs of N examples.
    """
    return sum(part.nbytes for part in named(inputs).values()) if isinstance(inputs, Tensor | Mapping) else 0


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
    return inputs.take(_indices(inputs, rows))


def _indices(inputs: Stored, rows: Tensor | slice) -> Tensor:
    return torch.arange(*rows.indices(len(inputs))) if isinstance(rows, slice) else rows


def subset(inputs: Inputs, rows: Tensor | slice) -> Inputs:
    """Return some examples as inputs of the same kind: a copy of what is in memory, a view of what is stored.

    Args:
        inputs: Inputs of N examples.
        rows: Indices, int64 (M,), or a slice.
    """
    in_memory = isinstance(inputs, Tensor | Mapping)
    return take(inputs, rows) if in_memory else Rows(inputs, _indices(inputs, rows))


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


def named(batch: Batch) -> dict[str, Tensor]:
    """Return the tensors of inputs by name; one tensor is called `SINGLE`.

    Args:
        batch: Inputs in memory.
    """
    return dict(batch) if isinstance(batch, Mapping) else {SINGLE: batch}


def length(batch: Batch) -> int | None:
    """Return L of sequences (N, L), which may differ from batch to batch; None: the inputs are no such tensors by name.

    Sequences are tensors of whole numbers. Where these differ in size, it is that of the mask.

    >>> ids = torch.zeros(2, 7, dtype=torch.int64)
    >>> length({"ids": ids, "mask": ids, "age": torch.zeros(2)}), length(ids)
    (7, None)

    Args:
        batch: Inputs in memory.
    """
    if not isinstance(batch, Mapping):
        return None
    sizes = {name: part.shape[1] for name, part in batch.items() if part.ndim > 1 and not part.is_floating_point()}
    if len(set(sizes.values())) > 1:
        sizes = {name: size for name, size in sizes.items() if MASK in name}
    return sizes.popitem()[1] if len(set(sizes.values())) == 1 else None


def shortened(batch: Batch, size: int) -> Batch:
    """Return sequences without what is beyond a length, which all tensors (N, L) of whole numbers have.

    Args:
        batch: Inputs in memory.
        size: New length, at most that of the sequences.
    """
    whole = length(batch)
    if whole is None:
        return batch
    return {name: part[:, :size] if part.ndim > 1 and part.shape[1] == whole else part for name, part in batch.items()}


def present(batch: Batch) -> Tensor | None:
    """Return which places of sequences hold something, bool (N, L), as their mask says; None: they have no mask.

    A mask is a tensor of the sequences' shape, of zeros and ones, whose name says that it is one (`places`).

    >>> present({"ids": torch.tensor([[5, 0]]), "key_padding_mask": torch.tensor([[False, True]])}).tolist()
    [[True, False]]

    Args:
        batch: Inputs in memory.
    """
    size = length(batch)
    for name, part in batch.items() if size is not None else ():
        if part.shape[1:] == (size,) and (found := places(name, part)) is not None:
            return found
    return None


def places(name: str, part: Tensor) -> Tensor | None:
    """Return which places of sequences a mask says to hold something, bool (N, L); None: it is no such mask.

    Args:
        name: Name of the input.
        part: The input.
    """
    if MASK not in name or part.ndim != 2 or not bool(((part == 0) | (part == 1)).all()):
        return None
    return torch.eq(part, 0) if PADDING in name else torch.ne(part, 0)


def form(inputs: Inputs) -> str:
    """Return dtypes and shapes of inputs, without the number of examples; of what is stored, without lengths.

    >>> form(torch.zeros(5, 2)), form({"ids": torch.zeros(5, 2).long()})
    ('float32 (2,)', 'ids int64 (2,)')

    Args:
        inputs: Inputs of N >= 1 examples, or tensors of none.
    """
    in_memory = isinstance(inputs, Tensor | Mapping)
    batch = inputs if in_memory else first(inputs)
    size = None if in_memory else length(batch)

    def shape(part: Tensor) -> str:
        sizes = ["L" if axis == 0 and each == size else str(each) for axis, each in enumerate(part.shape[1:])]
        return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"

    parts = [
        ("" if name == SINGLE else f"{name} ") + f"{str(part.dtype).removeprefix('torch.')} {shape(part)}"
        for name, part in named(batch).items()
    ]
    return ", ".join(parts)


def check(inputs: Inputs, what: str = "inputs") -> None:
    """Check that inputs are of one of the three kinds, and that stored ones answer as they must.

    Args:
        inputs: What is given as such.
        what: Words for them in errors.

    Raises:
        InputsError: They are not: a mapping without tensors or with tensors of unlike length, labels among them, or
            stored inputs that answer otherwise the second time.
    """
    if isinstance(inputs, Tensor):
        return
    if isinstance(inputs, Mapping):
        _check_named(inputs, what)
        return
    if isinstance(inputs, np.ndarray) or not isinstance(inputs, Stored):  # an array has a take(), too
        raise InputsError(
            f"{what}: got a {type(inputs).__name__}, expected a torch tensor, a mapping of tensors by the name of the"
            f" model's argument, or an object with __len__ and take(rows){_wrapped(inputs)}"
        )
    number = len(inputs)
    rows = torch.arange(number)[:: max(1, number // 3)][:3]
    if not number:
        return
    try:
        batch, again, turned = (inputs.take(each) for each in (rows, rows, rows.flip(0)))
    except (TypeError, ValueError) as error:
        if not hasattr(inputs, "__getitem__"):
            raise
        raise InputsError(
            f"{what}: got a {type(inputs).__name__}, whose take() takes no rows ({error}), expected inputs that are"
            f" stored{_wrapped(inputs)}"
        ) from error
    for part in (batch, again, turned):
        if not isinstance(part, Tensor):
            _check_named(part, what)
        if count(part) != len(rows):
            raise InputsError(f"{what}: take({rows.tolist()}) returned {count(part)} rows, expected {len(rows)}")
    if not _equal(batch, again):
        raise InputsError(
            f"{what}: take({rows.tolist()}) returns other tensors the second time, so every process would train and"
            " evaluate on its own; does it draw random numbers (augmentation, masked words)? Draw them from the row's"
            " number, or in the model"
        )
    if not _equal(turned, mapped(batch, lambda part: part.flip(0))):
        raise InputsError(
            f"{what}: take({rows.flip(0).tolist()}) does not return the rows of take({rows.tolist()}) in the other"
            " order; does it sort them, or go by something else than the rows it is given?"
        )


def _wrapped(inputs: Any) -> str:
    """Return how to make inputs of something else, as the end of a sentence."""
    if isinstance(inputs, np.ndarray):
        return ": torch.from_numpy(array)"
    if hasattr(inputs, "dataset"):
        return ": not the loader of a data set, but stored.Collated(loader.dataset, collate)"
    return ": of a data set or a list of examples, stored.Collated(dataset, collate)"


def _check_named(batch: Any, what: str) -> None:
    if not isinstance(batch, Mapping):
        raise InputsError(
            f"{what}: got a {type(batch).__name__}, expected a tensor or a mapping of tensors by the name of the"
            " model's argument"
        )
    if not batch:
        raise InputsError(f"{what}: got an empty mapping, expected at least one tensor by the name of an argument")
    for name, part in batch.items():
        if name in LABELS:
            raise InputsError(
                f"{what}: {name!r} is among the inputs; labels are no inputs, but targets: give them as"
                " Examples(inputs, targets), and leave them out of what the model is called with (an input that is"
                " really called so: wrap the model)"
            )
        if not isinstance(part, Tensor) or part.ndim == 0:
            given = f"a tensor of shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"a {type(part).__name__}"
            raise InputsError(f"{what}: {name!r} is {given}, expected a tensor (N, ...); torch.tensor(...) makes one")
    lengths = {name: len(part) for name, part in batch.items()}
    if len(set(lengths.values())) > 1:
        numbers = ", ".join(f"{name!r} has {number:,} rows" for name, number in lengths.items())
        raise InputsError(f"{what}: {numbers}, expected as many of each; was only one of them cut or shuffled?")


def _equal(left: Batch, right: Batch) -> bool:
    one, other = named(left), named(right)
    return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)


def _same(left: Tensor, right: Tensor) -> bool:
    alike = left.shape == right.shape and left.dtype == right.dtype
    return alike and bool((left.eq(right) | left.ne(left)).all())


def check_arguments(model: nn.Module, batch: Batch, what: str = "inputs") -> None:
    """Check that a model takes arguments of these names.

    A forward with `**kwargs` takes any name; there, one that is nearly that of an argument is taken for a mistake.

    Args:
        model: The model.
        batch: Inputs in memory.
        what: Words for them in errors.

    Raises:
        InputsError: It does not.
    """
    if not isinstance(batch, Mapping):
        return
    parameters = inspect.signature(model.forward).parameters
    kinds = {name: each.kind for name, each in parameters.items()}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named_ones = [name for name, kind in kinds.items() if kind in by_name]
    anything = inspect.Parameter.VAR_KEYWORD in kinds.values()
    for name in batch:
        near = difflib.get_close_matches(name, [each for each in named_ones if each not in batch], 1, 0.8)
        if name in named_ones or (anything and not near):
            continue
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputsError(
            f"{what}: {name!r} is no argument of {type(model).__name__}.forward, which takes"
            f" {', '.join(named_ones) or 'none by name'}{hint}"
        )
