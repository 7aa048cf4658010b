"""Digits: sizes, overlap, and that the model learns them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fedpress.compression.models.task import check_splits, disjoint, evaluate
from fedpress.simulations.tasks import digits
from fedpress.simulations.tasks.digits import Digits

torch.set_num_threads(1)


def test_parts_share_no_example_and_cover_the_data():
    parts = digits.split_indices(load_digits().target.astype(np.int64))
    assert {name: len(indices) for name, indices in parts.items()} == {
        "train": 1037,
        "test": 360,
        "proxy": 300,
        "validation": 100,
    }
    disjoint(*parts.values())
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(1797))


def test_the_table_is_that_of_scikit_learn_with_and_without_its_help(monkeypatch: pytest.MonkeyPatch):
    expected = load_digits()
    for _ in range(2):
        pixels, targets = digits.table()
        assert np.array_equal(pixels, expected.data) and np.array_equal(targets, expected.target)
        monkeypatch.setattr(digits, "find_spec", lambda _: None)


def test_no_image_of_the_test_part_is_elsewhere():
    # Index sets may be disjoint while the data holds an image twice; digits does not.
    splits = Digits().data()
    seen = {part: {row.numpy().tobytes() for row in examples.inputs} for part, examples in splits._asdict().items()}
    for part in ("train", "proxy", "validation"):
        assert not seen["test"] & seen[part]


def test_examples_are_images_in_unit_range_with_every_digit():
    splits = Digits().data()
    check_splits(splits)
    for examples in splits:
        assert examples.inputs.shape[1:] == (1, 8, 8)
        assert examples.inputs.min() == 0.0 and examples.inputs.max() == 1.0
        counts = torch.bincount(examples.targets, minlength=10)
        expected = len(examples.targets) / 10
        assert (counts - expected).abs().max() <= 0.05 * expected + 1.5
    assert Digits().data().train.inputs is splits.train.inputs  # loaded once


def test_the_model_has_the_promised_size():
    count = sum(parameter.numel() for parameter in Digits().model().parameters())
    assert count == 105_226
    assert 60_000 <= count <= 200_000


@pytest.mark.long
def test_central_training_passes_96_percent():
    torch.manual_seed(0)
    task = Digits()
    model, splits = task.model(), task.data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        for batch in torch.randperm(len(splits.train.targets)).split(32):
            optimizer.zero_grad()
            task.loss(model(splits.train.inputs[batch]), splits.train.targets[batch]).backward()
            optimizer.step()
    assert evaluate(model, task, splits.test).accuracy > 0.96
