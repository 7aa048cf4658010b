"""Examples on a disk: read, tokenized and padded batch by batch, by a collator that a user brings.

>>> import tempfile
>>> from pathlib import Path
>>> path = Path(tempfile.mkdtemp()) / "verses.txt"
>>> _ = path.write_text("jesus wept\\nrejoice evermore always\\n")
>>> def padded(lines):  # such as a tokenizer with padding=True
...     lengths = [len(line.split()) for line in lines]
...     words = [[len(word) for word in line.split()] + [0] * (max(lengths) - n) for line, n in zip(lines, lengths)]
...     return {"lengths": torch.tensor(words)}
>>> verses = Collated(Lines(path), padded)
>>> verses.take(torch.tensor([1, 0]))["lengths"].tolist()
[[7, 8, 6], [5, 4, 0]]
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from fedpress.compression.models.inputs import Batch, InputsError

MAP_BYTES = 1 << 26
"""Bytes of a file that are searched for line ends at a time."""


class Dataset(Protocol):
    """A map-style data set: `torch.utils.data.Dataset`, `datasets.Dataset`, a list."""

    def __len__(self) -> int:
        """Return N, the number of examples."""

    def __getitem__(self, index: int, /) -> Any:
        """Return an example."""


class Collated:
    """Inputs of a data set, made of its examples batch by batch (`inputs.Stored`).

    Targets are no part of them: `Examples(Collated(dataset, collate), targets)`, with all targets in memory.

    Args:
        dataset: Examples, such as lines of text or rows of tokens; one with `__getitems__` is asked for a whole batch.
        collate: Maps the examples of a batch, a list, to tensors by the name of the model's argument, each (N, ...):
            `transformers.DataCollatorWithPadding(tokenizer)`, or a function that pads.

    Raises:
        InputsError: The data set is a stream, such as `torch.utils.data.IterableDataset`.
    """

    def __init__(self, dataset: Dataset, collate: Callable[[list[Any]], Any]) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__") or not _by_number(dataset):
            raise InputsError(
                f"Collated: got a {type(dataset).__name__}, a stream, expected a data set with a length and an example"
                " for each index: clients are given examples by their numbers. list(dataset) holds them in memory;"
                " on a disk, datasets.Dataset.from_generator or Lines of a text file can be read at any place"
            )
        self._dataset, self._collate = dataset, collate

    def __len__(self) -> int:
        """Return N, the number of examples."""
        return len(self._dataset)

    def take(self, rows: Tensor) -> Batch:
        """Return the inputs of some examples, as `inputs.Stored` defines.

        Args:
            rows: Indices, int64 (M,).

        Raises:
            InputsError: There are no examples, or the collator returns something else than tensors.
        """
        chosen = rows.tolist()
        if not len(self):
            raise InputsError("the data set has no examples, of which the form of a batch could be seen")
        batch = self._collated(chosen or [0])
        return batch if chosen else {name: part[:0] for name, part in batch.items()}

    def _collated(self, rows: list[int]) -> dict[str, Tensor]:
        several: Callable[[list[int]], Sequence[Any]] | None = getattr(self._dataset, "__getitems__", None)
        examples = several(rows) if several else [self._dataset[row] for row in rows]
        batch = self._collate(list(examples))
        if isinstance(batch, Tensor):
            raise InputsError(
                "the collator returned one tensor, expected tensors by the name of the model's argument, such as"
                " {'input_ids': tensor}"
            )
        if not isinstance(batch, Mapping):
            raise InputsError(f"the collator returned a {type(batch).__name__}, expected a mapping of tensors")
        return {str(name): _tensor(name, part) for name, part in batch.items()}


def _by_number(dataset: object) -> bool:
    return hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__")


def _tensor(name: object, part: Any) -> Tensor:
    if isinstance(part, Tensor):
        return part
    try:
        return torch.as_tensor(part)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputsError(
            f"the collator returned {name!r} as a {type(part).__name__} that is no tensor ({error}): does it pad, and"
            " return tensors (return_tensors='pt')? Is a column of texts left in the examples?"
        ) from error


class Lines:
    """Lines of a text file, which stays on the disk: N, and where each begins, is all that is held in memory.

    Args:
        path: File in UTF-8; empty lines count, a last line end does not begin another.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._size = self._path.stat().st_size
        ends: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        with self._path.open("rb") as file:
            start = 0
            while part := file.read(MAP_BYTES):
                ends.append(np.flatnonzero(np.frombuffer(part, np.uint8) == ord("\n")) + start)
                start += len(part)
        found = np.concatenate([*ends, np.empty(0, np.int64)]).astype(np.int64)
        if self._size and (not len(found) or found[-1] != self._size - 1):
            found = np.append(found, self._size)
        self._ends = found
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        """Return a line, without its end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"line {index} of {len(self)}")
        index %= len(self)
        if self._map is None:  # pages that all processes share
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = int(self._ends[index - 1]) + 1 if index else 0
        return self._map[start : int(self._ends[index])].decode().removesuffix("\r")

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: all but the map, which each process makes."""
        return {**vars(self), "_map": None}
