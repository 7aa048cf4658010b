"""Task `text`: next-character prediction, where a client is a book.

After the Shakespeare task of H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, where a client is a role in a play. Here it is one of the 66 books of the King James
Bible, which Debian's package bible-kjv-text installs, or a text file of the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression import files
from fedpress.compression.models.task import Examples, Splits, Task, disjoint
from fedpress.compression.models.transformer import CausalTransformer
from fedpress.simulations.tasks import architectures, king_james
from fedpress.simulations.tasks.registry import TaskError

LENGTH = 64
"""Characters that a window predicts; it has one more, its first."""

ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-"
"""Characters of labels 1, 2, ...; label 0 is every other character. Fixed: no client needs the others' texts."""

HELD_OUT = {"proxy": 0.02, "validation": 0.02, "test": 0.04}
"""Share of a book's windows in each held-out part, at least one window, in this order at the book's end."""

EMBEDDING, HIDDEN = 32, 256


class Text(Task):
    """Windows of text with an LSTM of 311,121 parameters that predicts the next character at each of 64 positions.

    Inputs and targets are int64 (N, 64), the targets one character ahead. Text is in lower case, every run of white
    space is one space, and all characters outside `ALPHABET` share a label. A book is cut into windows that share no
    character; the last of them are held out (`HELD_OUT`), each part contiguous, the same in every run. The partition
    `natural` makes every book a client, so sizes differ.

    Args:
        data_dir: Folder whose .txt files, in UTF-8, are the books, in the order of their names; by default the King
            James Bible as Debian's package bible-kjv-text has it.
        model: Name of the architecture, in `MODELS`.

    Raises:
        TaskError: There is no such architecture.
    """

    name = "text"
    architecture = "lstm"

    def __init__(self, data_dir: str | None = None, model: str = "lstm") -> None:
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        self.architecture = architectures.known(MODELS, model)

    def model(self) -> nn.Module:
        """Return a fresh model of the chosen architecture, from characters (N, 64) to logits (N, 64, 49).

        By default an embedding of 32, an LSTM of 256 units, a linear layer.
        """
        return MODELS[self.architecture]()

    def students(self) -> architectures.Models:
        """Return the architectures of the task."""
        return MODELS

    def data(self) -> Splits:
        """Return the four parts; of 66 books: 58,529 windows to train, 1,275 proxy, 1,275 validation, 2,545 test.

        Raises:
            TaskError: The package, the folder or its files are absent, unreadable or too short.
        """
        return _corpus(self.data_dir).splits

    def groups(self) -> NDArray[np.int64]:
        """Return the book of each training example, from 0, (N,)."""
        return _corpus(self.data_dir).books

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of a character.

        Args:
            outputs: Logits, (N, L, labels).
            targets: Characters, int64 (N, L).
        """
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return which predicted characters are right, bool (N, L).

        Args:
            outputs: Logits, (N, L, labels).
            targets: Characters, int64 (N, L).
        """
        return outputs.argmax(dim=-1) == targets


class NextCharacter(nn.Module):
    """Embedding, recurrent and linear layer: characters (N, L) to logits of the next one (N, L, labels).

    Args:
        recurrent: Class of the recurrent layer.
        hidden: Its units.
    """

    def __init__(self, recurrent: type[nn.LSTM] | type[nn.GRU] = nn.LSTM, hidden: int = HIDDEN) -> None:
        super().__init__()
        labels = len(ALPHABET) + 1
        self.embedding = nn.Embedding(labels, EMBEDDING)
        self.lstm = recurrent(EMBEDDING, hidden, batch_first=True)
        self.output = nn.Linear(hidden, labels)

    def forward(self, characters: Tensor) -> Tensor:
        """Return logits at each position, from the characters up to it; every window starts from a zero state."""
        hidden, _ = self.lstm(self.embedding(characters))
        logits: Tensor = self.output(hidden)
        return logits


MODELS: architectures.Models = {
    "lstm": NextCharacter,
    "gru": lambda: NextCharacter(nn.GRU, 128),
    "gru-small": lambda: NextCharacter(nn.GRU, 64),
    "transformer": lambda: CausalTransformer(len(ALPHABET) + 1, LENGTH, width=64, depth=4, heads=4, hidden=128),
}
"""Architectures of the task by name, for its model and for students."""


class Corpus(NamedTuple):
    """Four parts of the data, and the book of each training example, (N,)."""

    splits: Splits
    books: NDArray[np.int64]


@cache
def _corpus(folder: Path | None) -> Corpus:
    texts = king_james.books() if folder is None else _read(folder)
    books = [windows(text, name) for name, text in texts.items()]
    parts = split_indices([len(book) for book in books])
    disjoint(*parts.values())
    everything = torch.from_numpy(np.concatenate(books))
    examples = Examples(everything[:, :-1], everything[:, 1:])
    owners = np.repeat(np.arange(len(books)), [len(book) for book in books])
    return Corpus(Splits(**{part: examples.take(chosen) for part, chosen in parts.items()}), owners[parts["train"]])


def windows(text: str, name: str) -> NDArray[np.int64]:
    """Cut a text into windows of labels, (N, LENGTH + 1), that share no character; the remainder is dropped.

    Args:
        text: The text.
        name: Its name in errors.

    Raises:
        TaskError: The text is too short to be in every part, or most of it is not in the alphabet.
    """
    labels = {character: label for label, character in enumerate(ALPHABET, 1)}
    line = " ".join(text.lower().split())
    written = np.array([labels.get(character, 0) for character in line], dtype=np.int64)
    count, least = len(written) // (LENGTH + 1), len(HELD_OUT) + 1
    if count < least:
        raise TaskError(
            f"task text: {name} has {len(written)} characters, expected at least {least * (LENGTH + 1)}, a window of"
            f" {LENGTH + 1} for each of train, {', '.join(HELD_OUT)}; leave it out or join it to another"
        )
    if 2 * np.count_nonzero(written) < len(written):
        raise TaskError(
            f"task text: {np.mean(written == 0):.0%} of {name} is not in the alphabet {ALPHABET!r}; expected text in"
            " Latin letters"
        )
    return written[: count * (LENGTH + 1)].reshape(count, LENGTH + 1)


def split_indices(counts: list[int]) -> dict[str, NDArray[np.int64]]:
    """Return the index array of each part into the windows of all books in a row, by name of the part.

    Args:
        counts: Number of windows of each book.
    """
    parts: Mapping[str, list[NDArray[np.int64]]] = {part: [] for part in ("train", *HELD_OUT)}
    start = 0
    for count in counts:
        sizes = [max(1, round(share * count)) for share in HELD_OUT.values()]
        ends = np.cumsum([count - sum(sizes), *sizes])
        for part, chosen in zip(parts, np.split(np.arange(start, start + count), ends[:-1]), strict=True):
            parts[part].append(chosen)
        start += count
    return {part: np.concatenate(chosen) for part, chosen in parts.items()}


def _read(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise TaskError(f"task.data_dir: the folder {folder} does not exist; expected a folder of .txt files")
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise TaskError(f"task.data_dir: {folder} has no .txt files; each is a client, the folders in it are not read")
    texts = {}
    for path in paths:
        try:
            texts[str(path)] = files.read_text(path, files.MOST_DATA)
        except UnicodeDecodeError as error:
            raise TaskError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
        except OSError as error:
            raise TaskError(f"{path}: cannot be read: {error.strerror}") from None
    return texts
