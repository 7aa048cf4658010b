"""Tasks whose models take several tensors by name: texts padded by a collator, with and without transformers."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedpress.compression.models.inputs import Inputs
from fedpress.compression.models.outputs import IGNORED
from fedpress.compression.models.stored import Collated, Lines
from fedpress.compression.models.task import Examples, Splits, Task

VOCABULARY, CLASSES, LONGEST = 40, 3, 12
EXAMPLES = {"train": 240, "proxy": 80, "validation": 60, "test": 60}
FIRST = 4
"""Token from which on there are words; 0 is padding, 1 begins a text, 2 ends its first part."""


def drawn(count: int, seed: int) -> tuple[list[list[int]], Tensor]:
    """Return token lists of unlike lengths, and their classes: which third of the vocabulary most words are of."""
    draw = np.random.default_rng(seed)
    classes = draw.integers(CLASSES, size=count)
    third = (VOCABULARY - FIRST) // CLASSES
    texts = []
    for label in classes:
        words = draw.integers(FIRST, VOCABULARY, size=draw.integers(3, LONGEST))
        own = draw.random(len(words)) < 0.7
        words[own] = FIRST + third * label + draw.integers(third, size=int(own.sum()))
        texts.append([1, *words.tolist()])
    return texts, torch.from_numpy(classes)


def collate(
    texts: Sequence[Sequence[int]], *, names: tuple[str, str] = ("input_ids", "attention_mask")
) -> dict[str, Any]:
    """Pad token lists to the longest."""
    longest = max(map(len, texts))
    ids, mask = names
    return {
        ids: torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts]),
        mask: torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts]),
    }


def pairs(texts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Pad token lists, each cut into two parts, which the tensor `token_type_ids` tells apart."""
    whole = collate([[*text[:2], 2, *text[2:]] for text in texts])
    places = torch.arange(whole["input_ids"].shape[1])
    return {**whole, "token_type_ids": (places[None] > 2).long() * whole["attention_mask"]}


class Pooled(nn.Module):
    """A transformer of plain torch: ids and mask to logits, by the mean over places that are there.

    Args:
        places: Whether it answers at every place, (N, classes, L), and not once a text.
        masked: Whether it uses its mask.
    """

    def __init__(self, places: bool = False, masked: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.hidden = nn.Linear(16, 24)
        self.head = nn.Linear(24, CLASSES)
        self.places, self.masked = places, masked

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits, (N, classes) or (N, classes, L)."""
        present = mask.bool() if self.masked else torch.ones_like(mask).bool()
        x = self.embedding(ids)
        scores = (self.query(x) @ self.key(x).transpose(1, 2) / 4).masked_fill(~present[:, None], float("-inf"))
        x = torch.relu(self.hidden(x + scores.softmax(-1) @ self.value(x)))
        logits: Tensor
        if self.places:
            logits = self.head(x).transpose(1, 2)
            return logits
        shares = present[..., None] / present.sum(1, keepdim=True)[..., None]
        logits = self.head((x * shares).sum(1))
        return logits


class Texts(Task):
    """Which third of the vocabulary most words of a text are of.

    Args:
        kind: `plain`: plain torch, ids and mask; `unmasked`: the same, which ignores its mask; `places`: a class at
            every place; `bert`, `tokens`: Hugging Face's BERT, one label a text or at every place.
        source: `lists`: token lists in memory; `lines`: a text file; `memory`: tensors of one length.
    """

    name = "texts"

    def __init__(self, kind: str = "plain", source: str = "lists") -> None:
        self.kind, self.source = kind, source

    def model(self) -> nn.Module:
        """Return the model."""
        if self.kind in ("bert", "tokens"):
            import transformers

            made = {
                "bert": transformers.BertForSequenceClassification,
                "tokens": transformers.BertForTokenClassification,
            }[self.kind]
            return made(  # type: ignore[no-any-return]
                transformers.BertConfig(
                    vocab_size=VOCABULARY,
                    hidden_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    intermediate_size=48,
                    max_position_embeddings=24,
                    num_labels=CLASSES,
                )  # fmt: skip
            )
        return Pooled(places=self.kind == "places", masked=self.kind != "unmasked")

    def data(self) -> Splits:
        """Return the four parts."""
        return self._splits

    @cached_property
    def _folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="fedpress-texts-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder

    @cached_property
    def _splits(self) -> Splits:
        return Splits(*(self._part(name, count, seed) for seed, (name, count) in enumerate(EXAMPLES.items())))

    def _part(self, name: str, count: int, seed: int) -> Examples:
        texts, classes = drawn(count, seed)
        targets = classes
        if self.kind in ("places", "tokens"):
            targets = torch.full((count, LONGEST), IGNORED)
            for row, text in enumerate(texts):
                targets[row, 1 : len(text)] = (torch.tensor(text[1:]) - FIRST) // ((VOCABULARY - FIRST) // CLASSES)
        return Examples(self._inputs(name, texts), targets)

    def _inputs(self, name: str, texts: list[list[int]]) -> Inputs:
        if self.source == "lines":
            path = self._folder / name
            path.write_text("".join(f"{' '.join(map(str, text))}\n" for text in texts))
            return Collated(
                Lines(path), lambda lines: self._collate([[int(word) for word in line.split()] for line in lines])
            )
        stored = Collated(texts, self._collate)
        return stored.take(torch.arange(len(texts))) if self.source == "memory" else stored

    def _collate(self, texts: Sequence[Sequence[int]]) -> dict[str, Any]:
        if self.kind in ("bert", "tokens"):
            return pairs(texts) if self.kind == "bert" else collate(texts)
        return collate(texts, names=("ids", "mask"))
