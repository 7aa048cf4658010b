"""A model that cannot be trained is an error before the first round; what can be trained stays allowed."""

from pathlib import Path

import pytest
import torch
from tests.apps import checked_task

from fedpress.compression.errors import FedpressError


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checked_task.write(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["task.loss=of each"], "the loss returned float32 of shape"),
        (["task.model=lazy"], "parameter '0.weight' has no shape yet"),
        (["task.model=meta"], "'body.weight' of model() is on device meta, expected the CPU; it holds no numbers"),
        (["task.model=scripted"], "expected the module that was compiled"),
        (["task.model=shared"], "parameter 'body.weight' shares memory with 1 parameter (again)"),
        (["task.model=copies"], "a gradient, but by none of the 4 parameters that are trained"),
        (["task.model=raises"], "model() raised KeyError: 'no such width' (checked_task.py, line"),
        (["task.model=other"], "model() returned a str"),
        (["task.model=infinite"], "parameter 'body.bias' of the initial model holds NaN or infinity"),
        (["task.model=numpy"], "the loss does not depend on any parameter"),
        (["task.model=root"], "gradient of parameter"),
        (["task.model=norm", "training.batch_size=1"], "training.batch_size: with 1, layer 'norm' (BatchNorm1d)"),
        (["trainable=['haed.*']"], "trainable: 'haed.*' matches no parameter of Block, which has body.weight"),
        (["trainable=['haed.*']"], "did you mean 'head'?"),
        (["training.gradient_checkpointing=true"], "Block has no block to compute again"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_trained_is_an_error(folder: Path, changes: list[str], expected: str) -> None:
    with pytest.raises(FedpressError) as raised:
        checked_task.notes(folder, *changes)
    assert expected in str(raised.value) and raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["task.model=mask"], None),
        (["task.model=packed"], None),
        (["task.model=sparse"], None),
        (["task.model=listed"], "1 layer (layers[0]) in a list or a dict, where torch does not look"),
        (["task.model=idle"], "1 parameter (idle) without a gradient"),
        (["task.model=norm", "training.batch_size=3"], "4 clients (0, 1, 2, 3) whose last batch of one example joins"),
        (["trainable=['head.*']"], "trainable: 2 parameters (head.weight, head.bias), 27 of 83 numbers"),
        (["trainable=['*']"], "the patterns match every parameter, so nothing is frozen"),
        (["task.model=norm", "training.batch_size=1", "trainable=['head.*']"], "27 of 99 numbers"),  # frozen: no batch
        (["training.optimizer=adamw"], None),
        (["training={optimizer: adamw, precision: float16, learning_rate: 0.5}"], "0.5 is a rate for sgd"),
        (["training.optimizer=muon"], "Muon steps nothing, as no matrix is hidden; AdamW steps 4 other parameters"),
        (["task.model=norm", "clients=40"], "40 clients (0, 1, 2, 3, 4, ...) with one example: there layer 'norm'"),
    ],
)  # fmt: skip
def test_what_can_be_trained_is_allowed_and_the_unusual_is_noted(
    folder: Path, changes: list[str], expected: str | None
) -> None:
    found = checked_task.notes(folder, *changes)
    assert found == [] if expected is None else expected in " ".join(found)
