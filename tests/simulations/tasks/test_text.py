"""The text task: windows that share nothing, a client for each book, a model that looks back only, and clear errors."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedpress.compression.models.task import check_splits, disjoint, evaluate
from fedpress.compression.tensors.layout import Layout
from fedpress.simulations.__main__ import main
from fedpress.simulations.tasks import king_james, text
from fedpress.simulations.tasks.registry import TaskError
from fedpress.simulations.tasks.text import ALPHABET, HELD_OUT, LENGTH, Text

real = pytest.mark.skipif(not king_james.DEBIAN.is_file(), reason="needs Debian's package bible-kjv-text")

WORDS = "the river ran below a hill where seven goats stood in rain and nobody came to count them".split()


@pytest.fixture
def folder(tmp_path):
    """Three texts of 20, 40 and 60 windows, and a bit, of words in a drawn order."""
    draw = np.random.default_rng(1)
    for number in (1, 2, 3):
        line = " ".join(draw.choice(WORDS, 2_000))
        (tmp_path / f"{number}.txt").write_text(line[: 20 * number * (LENGTH + 1) + 30], encoding="utf-8")
    return tmp_path


def test_windows_hold_the_text_in_lower_case_on_one_line():
    characters = "Two  LINES,\n\tone text; \u00e9! " * 40
    found = text.windows(characters, "a text")
    line = " ".join(characters.lower().split())
    read = "".join(("?" + ALPHABET)[label] for label in found.flatten())
    assert found.shape == (len(line) // 65, 65) and found.dtype == np.int64
    assert read == line[: found.size].replace("\u00e9", "?")


@given(st.lists(st.integers(4, 500), min_size=1, max_size=8))
def test_each_part_is_a_stretch_of_every_book_and_no_window_is_in_two(counts):
    parts = text.split_indices(counts)
    disjoint(*parts.values())
    assert sum(map(len, parts.values())) == sum(counts)
    starts = np.cumsum([0, *counts])
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        own = [part[(part >= start) & (part < end)] for part in parts.values()]
        assert all(len(part) for part in own)
        assert np.concatenate(own).tolist() == list(range(start, end))  # train, proxy, validation, test in the text


def test_a_folder_of_texts_is_a_client_each(folder):
    task = Text(str(folder))
    splits = task.data()
    check_splits(splits)
    groups = task.groups()
    assert list(splits._fields) == ["train", *HELD_OUT]
    assert [len(part.targets) for part in splits] == [20 + 40 + 60 - 3 - 3 - 5, 1 + 1 + 1, 1 + 1 + 1, 1 + 2 + 2]
    assert np.bincount(groups).tolist() == [17, 36, 56]
    assert all(torch.equal(part.inputs[:, 1:], part.targets[:, :-1]) for part in splits)
    # The first windows of a client are the beginning of its file.
    first = splits.train.take(np.flatnonzero(groups == 1)[:2])
    read = "".join(("?" + ALPHABET)[label] for label in first.inputs[1].tolist())
    assert read == (folder / "2.txt").read_text()[65 : 65 + 64]


@real
def test_the_real_books():
    task = Text()
    splits = task.data()
    check_splits(splits)
    assert [len(part.targets) for part in splits] == [58_529, 1_275, 1_275, 2_545]
    sizes = np.bincount(task.groups())
    assert (len(sizes), sizes.min(), sizes.max()) == (66, 20, 3_166)
    assert all(part.targets.min() > 0 for part in splits)  # nothing in it is outside the alphabet


def test_the_model_sees_no_character_ahead():
    torch.manual_seed(0)
    model = Text().model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 311_121 == Layout.of(model).size
    one = torch.randint(0, len(ALPHABET) + 1, (2, LENGTH))
    other = one.clone()
    other[:, 40:] = (other[:, 40:] + 1) % len(ALPHABET)
    with torch.no_grad():
        first, second = model(one), model(other)
    assert first.shape == (2, LENGTH, len(ALPHABET) + 1)
    assert torch.equal(first[:, :40], second[:, :40]) and not torch.equal(first[:, 40:], second[:, 40:])


def test_loss_and_accuracy_are_means_over_characters(folder):
    task = Text(str(folder))
    examples = task.data().test
    torch.manual_seed(0)
    model = task.model()
    found = evaluate(model, task, examples, batch_size=2)
    with torch.no_grad():
        outputs = model(examples.inputs)
    chances = outputs.log_softmax(-1).gather(-1, examples.targets[..., None])
    assert found.loss == pytest.approx(-float(chances.mean()), rel=1e-5)
    assert found.accuracy == float((outputs.argmax(-1) == examples.targets).double().mean())
    assert found.count == len(examples.targets)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"too short", "short.txt has 9 characters, expected at least 260, a window of 65 for each of train, proxy"),
        (b"a" * 259 + b"\n\n\n", "has 259 characters"),
        (b"a" * 300 + b"\xff", "short.txt: byte 300 is not UTF-8"),
        ("\u043c\u0438\u0440 ".encode() * 200, "75% of .*short.txt is not in the alphabet"),
    ],
)
def test_a_file_that_is_no_book_is_named(folder, content, message):
    (folder / "short.txt").write_bytes(content)
    with pytest.raises(TaskError, match=message):
        Text(str(folder)).data()


def test_a_folder_without_texts_is_refused(tmp_path):
    with pytest.raises(TaskError, match=r"task\.data_dir: .* has no \.txt files"):
        Text(str(tmp_path)).data()
    with pytest.raises(TaskError, match=r"task\.data_dir: the folder .*nowhere does not exist"):
        Text(str(tmp_path / "nowhere")).data()


@pytest.mark.slow
def test_a_run_on_a_folder_of_texts(folder, tmp_path):
    settings = [
        f"task={{name: text, data_dir: {folder}}}",
        "clients=3",
        "rounds=2",
        "sampling.clients_per_round=2",
        "workers=1",
    ]
    options = [word for setting in [*settings, "training.steps=2"] for word in ("--set", setting)]
    done = CliRunner().invoke(main, ["simulate", "text-books", *options, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "finished" and results["model"]["parameters"] == 311_121
    assert [entry["refused"] for entry in results["rounds"]] == [0, 0]
    assert 0 < results["accuracy"] < 1 and results["rounds"][1]["loss"] < np.log(len(ALPHABET) + 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["clients=4"], "clients: got 4, but the data has 3 groups .* write clients: 3"),
        (["clients=3", "partition.kind=dirichlet"], "'dirichlet' goes by the label .* sequences of 64 labels"),
    ],
)
def test_a_partition_that_does_not_fit_is_refused_before_there_is_a_folder(folder, tmp_path, overrides, message):
    settings = [f"task={{name: text, data_dir: {folder}}}", "sampling.clients_per_round=2", *overrides]
    options = [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(main, ["simulate", "text-books", *options, "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert not (tmp_path / "run").exists()
    assert re.search(message, done.stderr.replace("\n", " "))
