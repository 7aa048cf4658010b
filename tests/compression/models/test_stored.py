"""Examples on a disk: the same tensors for the same rows, in any process, and little in memory."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.apps import texts

from fedpress.compression.models import inputs
from fedpress.compression.models.inputs import InputsError
from fedpress.compression.models.stored import Collated, Lines


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), max_size=9), max_size=9), st.booleans()
)
def test_lines_are_those_of_the_file(tmp_path_factory: pytest.TempPathFactory, lines: list[str], ended: bool) -> None:
    path = tmp_path_factory.mktemp("lines") / "file"
    path.write_bytes(("\n".join(lines) + "\n" * (ended or (bool(lines) and not lines[-1]))).encode() if lines else b"")
    found = Lines(path)
    assert [found[at] for at in range(len(found))] == lines
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert [again[at] for at in range(len(again))] == lines
    with pytest.raises(IndexError, match=f"line {len(lines)} of {len(lines)}"):
        found[len(lines)]


def test_pieces_of_a_long_file_are_read_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpress.compression.models.stored.MAP_BYTES", 7)
    path = tmp_path / "file"
    path.write_bytes(b"first line\r\nsecond\n\nlast")
    found = Lines(path)
    assert [found[at] for at in range(len(found))] == ["first line", "second", "", "last"] and found[-1] == "last"


@given(st.lists(st.integers(0, 39), max_size=12))
def test_rows_are_those_of_the_data_set_padded_to_the_longest(rows: list[int]) -> None:
    lists, _ = texts.drawn(40, seed=0)
    stored = Collated(lists, texts.collate)
    inputs.check(stored)
    batch = stored.take(torch.tensor(rows, dtype=torch.int64))
    assert inputs.count(batch) == len(rows)
    for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids[mask.bool()].tolist() == lists[row]
    if rows:
        assert inputs.length(batch) == max(len(lists[row]) for row in rows)


class Batched:
    """A data set that reads a whole batch at once, and counts how often."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("one by one")

    def __getitems__(self, rows: list[int]) -> list[list[int]]:
        self.reads += 1
        return [[1] * (1 + row) for row in rows]


def test_a_data_set_that_reads_batches_is_asked_for_batches() -> None:
    dataset = Batched()
    assert Collated(dataset, texts.collate).take(torch.tensor([2, 0]))["input_ids"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert dataset.reads == 1


def test_clients_of_stored_examples_have_views_and_none_of_the_texts() -> None:
    part = texts.Texts().data().train
    own = part.take(torch.tensor([5, 3]))
    assert isinstance(own.inputs, inputs.Rows) and own.targets.tolist() == part.targets[[5, 3]].tolist()


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (lambda rows: torch.zeros(len(rows), 2), "returned one tensor, expected tensors by the name"),
        (lambda rows: [1, 2], "returned a list, expected a mapping"),
        (lambda rows: {"ids": [[1, 2], [3]]}, r"'ids' as a list that is no tensor .*does it pad"),
        (lambda rows: {"text": ["a", "b"]}, "'text' as a list that is no tensor .*column of texts"),
    ],
)
def test_what_a_collator_must_not_return_is_said(collate: Any, message: str) -> None:
    with pytest.raises(InputsError, match=message):
        Collated([[1], [2]], collate).take(torch.tensor([0, 1]))
    with pytest.raises(InputsError, match="has no examples"):
        Collated([], collate).take(torch.tensor([], dtype=torch.int64))


def test_a_data_set_of_datasets_with_the_collator_of_transformers() -> None:
    """As users have them: columns on a disk, a tokenizer that pads, `labels` that must be left out."""
    datasets = pytest.importorskip("datasets", reason="a library for data sets that fedpress does not need")
    transformers = pytest.importorskip("transformers", reason="the extra text-models")
    tokenizers = pytest.importorskip("tokenizers", reason="the extra text-models")
    words = tokenizers.models.WordLevel({"[PAD]": 0, "a": 1, "b": 2}, unk_token="[PAD]")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), pad_token="[PAD]")
    columns = datasets.Dataset.from_dict({"input_ids": [[1], [2, 1, 1], [2, 2]], "label": [0, 1, 0]})
    collate = transformers.DataCollatorWithPadding(tokenizer)

    stored = Collated(columns.remove_columns("label"), collate)
    inputs.check(stored)
    batch = stored.take(torch.tensor([2, 0]))
    assert batch["input_ids"].tolist() == [[2, 2], [1, 0]] and batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    with pytest.raises(InputsError, match="'labels' is among the inputs"):
        inputs.check(Collated(columns, collate))


class Streamed(torch.utils.data.IterableDataset[int]):
    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@pytest.mark.parametrize("stream", [Streamed(), iter(range(3)), (number for number in range(3))])
def test_a_stream_is_refused_when_it_is_given(stream: Any) -> None:
    with pytest.raises(InputsError, match="a stream, expected a data set with a length and an example for each index"):
        Collated(stream, lambda rows: {"ids": torch.tensor(rows)})
