"""Data that model and loss cannot take are an error; what they can take stays allowed."""

from pathlib import Path

import pytest
import torch
from tests.apps import checked_task

from fedpress.compression.errors import FedpressError

PLAIN = "task.name=tests.apps.checked_task:Plain"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checked_task.write(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["task.labels=from one"], "part 'train': 1 label (3) outside the model's 3 outputs"),
        (["task.labels=from one"], "expected 0 to 2, or -100 where there is none; do labels begin at 1?"),
        (["task.labels=below zero"], "part 'train': 1 label (-1) outside the model's 3 outputs, 1 target(s)"),
        (["task.labels=all ignored"], "part 'train': no example has a target, all are -100"),
        (["task.labels=floats"], "targets float32 of shape (40,)"),
        (["task.labels=floats"], "The cross-entropy takes whole numbers: targets.long()"),
        (["task.labels=narrow"], "The cross-entropy takes whole numbers: targets.long()"),
        (["task.labels=column"], "Has each label an axis of its own? targets[:, 0]"),
        (["task.labels=one-hot"], "Are the targets one-hot? targets.argmax(1)"),
        ([PLAIN, "task.labels=several"], "Several labels an example: a `loss` such as"),
        (["task.labels=strings"], "part 'train' is Tensor, list, expected Examples(inputs, targets) of torch tensors"),
        (["task.labels=strings"], "number the labels, torch.tensor([NAMES.index(label) for label in labels])"),
        (
            ["task.labels=fractions", "task.loss=regression", "partition.kind=dirichlet"],
            "goes by labels, but the targets",
        ),
        (["task.labels=NaN", "task.loss=regression"], "part 'train': the target of example 7 is NaN"),
        (["task.inputs=NaN"], "part 'train': 1 of 40 inputs hold NaN or infinity, the first is example 11"),
        (["task.inputs=double"], "Should the inputs be float32, too? They are float64: inputs.float()"),
        (["task.inputs=narrow"], "the model cannot take inputs of part 'train', float32 of shape (2, 5)"),
        (["task.loss=infinite"], "part 'train': the loss of the initial model is"),
        (["task.data=raises"], "data() raised FileNotFoundError"),
        (["task.data=numpy"], "data() returned a tuple, expected Splits"),
        (["task.data=drawn"], "data() returns other examples at every call"),
        (["task.data=global"], "data() returns other examples at every call"),
    ],
)  # fmt: skip
def test_data_that_do_not_go_with_model_and_loss_are_an_error(folder: Path, changes: list[str], expected: str) -> None:
    with pytest.raises(FedpressError) as raised:
        checked_task.notes(folder, *changes)
    assert expected in str(raised.value) and raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([PLAIN, "task.model=softmax"], "the model's outputs are probabilities, and the default loss"),
        (["task.labels=some ignored"], None),
        (["task.labels=from one", "task.loss=from one"], None),  # the task's own loss knows better
        (["task.labels=fractions", "task.loss=regression"], None),
        (["task.labels=floats", "task.loss=regression", "partition.kind=dirichlet"], None),  # labels all the same
        (["task.model=fills in", "task.inputs=NaN"], "1 inputs hold NaN or infinity; the model takes them"),
    ],
)  # fmt: skip
def test_data_that_can_be_trained_on_are_allowed_and_the_unusual_is_noted(
    folder: Path, changes: list[str], expected: str | None
) -> None:
    found = checked_task.notes(folder, *changes)
    assert found == [] if expected is None else expected in " ".join(found)


NAMED = """
import torch
from tests.apps.texts import Texts
from fedpress.compression.models.task import Examples

class Spoiled(Texts):
    name = "spoiled"

    def __init__(self, kind="plain", spoil="none"):
        super().__init__(kind, "memory" if spoil != "drawn" else "lists")
        self.spoil = spoil

    def _part(self, name, count, seed):
        inputs, targets = super()._part(name, count, seed)
        if self.spoil == "empty":
            inputs = {}
        if self.spoil == "short":
            inputs["mask"] = inputs["mask"][:7]
        if self.spoil == "labels":
            inputs["labels"] = targets
        if self.spoil == "misspelled":
            inputs["masks"] = inputs.pop("mask")
        if self.spoil == "NaN":
            inputs = {"ids": inputs["ids"], "mask": inputs["mask"].float()}
            inputs["mask"][3, 1] = float("nan")
        if self.spoil == "cut":
            targets = targets[:7]
        if self.spoil == "drawn":
            inputs = Drawn(len(targets))
        return Examples(inputs, targets)

class Drawn:
    def __init__(self, count):
        self.count = count
    def __len__(self):
        return self.count
    def take(self, rows):
        return {"ids": torch.randint(1, 40, (len(rows), 5)), "mask": torch.ones(len(rows), 5).long()}
"""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ("spoil: empty", "part 'train': inputs: got an empty mapping"),
        ("spoil: short", "'mask' has 7 rows, expected as many of each"),
        ("spoil: labels", "'labels' is among the inputs; labels are no inputs, but targets"),
        ("spoil: misspelled", "'masks' is no argument of Pooled.forward, which takes ids, mask; did you mean 'mask'"),
        ("spoil: cut", "part 'train': 240 inputs but 7 targets"),
        ("spoil: drawn", "returns other tensors the second time"),
    ],
)
def test_inputs_by_name_that_would_fail_are_an_error(folder: Path, changes: str, expected: str) -> None:
    (folder / "named.py").write_text(NAMED)
    with pytest.raises(FedpressError) as raised:
        checked_task.notes(folder, f"task={{name: 'named:Spoiled', {changes}}}")
    assert expected in str(raised.value) and raised.value.exit_code == 2


def test_padding_that_is_attended_to_is_an_error_and_inputs_by_name_are_none(folder: Path) -> None:
    with pytest.raises(FedpressError, match="padding is attended to"):
        checked_task.notes(folder, "task={name: 'tests.apps.texts:Texts', kind: unmasked}")
    assert checked_task.notes(folder, "task={name: 'tests.apps.texts:Texts'}") == []
    (folder / "named.py").write_text(NAMED)
    (note,) = checked_task.notes(folder, "task={name: 'named:Spoiled', spoil: NaN}")[:1]
    assert note == "part 'train': 1 inputs hold NaN or infinity; the model takes them"


COPYING = """
import torch
from torch import nn
from tests.apps.texts import VOCABULARY, collate, drawn
from fedpress.compression.models.stored import Collated
from fedpress.compression.models.task import Examples, Splits, Task

class Next(nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)
        self.decoder = decoder

    def forward(self, input_ids, attention_mask=None, decoder_input_ids=None):
        if self.decoder and decoder_input_ids is None:
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        return {"logits": self.table(input_ids)}

class Copying(Task):
    name = "copying"
    def __init__(self, shifted=0, decoder=False):
        self.shifted, self.decoder = shifted, decoder
    def model(self):
        return Next(self.decoder)
    def data(self):
        return Splits(*(self.part(seed) for seed in range(4)))
    def part(self, seed):
        texts, _ = drawn(40, seed)
        targets = torch.full((40, 12), -100)
        for row, text in enumerate(texts):
            targets[row, : len(text) - self.shifted] = torch.tensor(text[self.shifted :])
        return Examples(Collated(texts, collate), targets)
"""


def test_targets_that_are_the_inputs_themselves_are_noted(folder: Path) -> None:
    (folder / "copying.py").write_text(COPYING)
    found = checked_task.notes(folder, "task={name: 'copying:Copying'}")
    assert "the targets are 'input_ids' itself" in found[0] and "targets[:, :-1] = input_ids[:, 1:]" in found[0]
    assert checked_task.notes(folder, "task={name: 'copying:Copying', shifted: 1}") == []


def test_what_an_encoder_decoder_lacks_is_said(folder: Path) -> None:
    (folder / "copying.py").write_text(COPYING)
    with pytest.raises(FedpressError, match="takes 'decoder_input_ids' among its inputs, too: the targets shifted"):
        checked_task.notes(folder, "task={name: 'copying:Copying', decoder: true}")
