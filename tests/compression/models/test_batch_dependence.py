"""A model whose outputs depend on the batch is found by trial, and the error names the layer."""

from collections import OrderedDict

import pytest
import torch
from tests.apps.batch_layers import DEPENDENT, Centered, inputs, net
from torch import nn

from fedpress.compression.models import batch_dependence
from fedpress.compression.models.batch_dependence import BatchDependent


@pytest.mark.parametrize("kind", DEPENDENT)
def test_the_layer_that_depends_on_the_batch_is_named(kind: str) -> None:
    model = nn.Sequential(OrderedDict(first=net(), norm=net(DEPENDENT[kind]()), last=nn.Linear(3, 3)))
    model.first[1] = nn.Linear(8, 5)
    with pytest.raises(BatchDependent, match=rf"'norm\.1' \({kind}\).* other inputs of its batch"):
        batch_dependence.require_independent(model, inputs(100))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_inputs_are_enough_to_see_it(count: int) -> None:
    with pytest.raises(BatchDependent, match="'1' \\(Centered\\)"):
        batch_dependence.require_independent(net(Centered()), inputs(count) + 1)
    batch_dependence.require_independent(net(nn.BatchNorm1d(8), nn.Dropout(0.5)).train(), inputs(count))


def test_a_single_sequence_gets_others_whose_tensors_belong_together() -> None:
    batch = batch_dependence.several({"ids": torch.tensor([[5, 6, 0]]), "mask": torch.tensor([[1, 1, 0]])})
    assert batch["ids"].shape == (4, 3)
    assert torch.equal(batch["ids"] != 0, batch["mask"].bool())
