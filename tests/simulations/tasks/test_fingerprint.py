"""Two processes have the same data if the fingerprints are equal."""

import pytest
import torch

from fedpress.compression.models.task import Examples, Splits
from fedpress.simulations.tasks import fingerprint


def splits(**changes: Examples) -> Splits:
    part = Examples(torch.arange(600.0).reshape(200, 3), torch.arange(200) % 7)
    return Splits(part, part, part, part)._replace(**changes)


def test_equal_data_have_equal_fingerprints() -> None:
    assert fingerprint.of(splits()) == fingerprint.of(splits())


@pytest.mark.parametrize("part", Splits._fields)
@pytest.mark.parametrize("change", ["another order", "one label", "another type", "fewer"])
def test_any_part_and_any_label_counts(part: str, change: str) -> None:
    inputs, targets = getattr(splits(), part)
    if change == "another order":
        order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
        inputs, targets = inputs[order], targets[order]
    elif change == "one label":
        targets = targets.clone()
        targets[101] = (targets[101] + 1) % 7
    elif change == "another type":
        inputs = inputs.to(torch.bfloat16)
    else:
        inputs, targets = inputs[:-1], targets[:-1]
    assert fingerprint.of(splits(**{part: Examples(inputs, targets)})) != fingerprint.of(splits())


def test_an_empty_part_has_one_too() -> None:
    empty = Examples(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert fingerprint.of(splits(proxy=empty)) != fingerprint.of(splits())
