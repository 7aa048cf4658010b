"""Transformers as they are written elsewhere: heads stay whole, budgets are met, and what was silent may go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.apps.families import FAMILIES, HUGGING_FACE, WIDE
from torch import Tensor, nn

from fedpress.compression.models import architecture
from fedpress.compression.models.pruning import channel_groups, structural

HEADS = {4: 3, 2: 1}
"""Numbers of heads, or groups of heads, and of those that the test keeps."""
COARSE = {"NanoGpt", "TimmViTByInput"}
"""Families whose heads take a quarter of the width with them."""

WITHOUT_HEADS = {"EinsumWeights"}
"""Families whose heads stay: einsum merges them with their entries before the product."""


def made(name: str) -> tuple[nn.Module, Any]:
    if name in HUGGING_FACE:
        pytest.importorskip("transformers", reason="the extra `text-models` brings it")
    torch.manual_seed(0)
    return FAMILIES[name]()


def answers(model: nn.Module, batch: Any) -> list[Tensor]:
    with torch.no_grad():
        return channel_groups.outputs_of(channel_groups.called(model, batch))


@pytest.mark.parametrize("name", FAMILIES)
def test_silenced_heads_and_columns_may_go(name: str) -> None:
    model, batch = made(name)
    groups = [group for group in channel_groups.find(model, batch) if group.units in (4, 2, 64)]
    assert ({group.units for group in groups} & HEADS.keys()) or name in WITHOUT_HEADS
    assert 64 in {group.units for group in groups}
    dead, draw = channel_groups.copied(model), torch.Generator().manual_seed(1)
    tensors, kept = channel_groups.named_tensors(dead), {}
    for group in groups:
        if name in COARSE and group.units != 64:  # the width is within norms, where zeros count
            continue
        left = HEADS.get(group.units, 40)
        kept[group.name] = left / group.units
        units = torch.randperm(group.units, generator=draw)[left:]
        for member in group.members:
            tensors[member.tensor].data.index_fill_(member.axis, member.positions[units].flatten(), 0)
    small = structural.keep_fraction(dead, batch, kept)
    assert structural.parameters_of(small) < structural.parameters_of(model)
    for one, other in zip(answers(small, batch), answers(dead, batch), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("budget", [0.8, pytest.param(0.6, marks=pytest.mark.long), 0.4, 0.2])
def test_budgets_are_met_and_shapes_bring_the_model_back(name: str, budget: float) -> None:
    model, batch = made(name)
    if name in WIDE and budget < 0.35:
        with pytest.raises(structural.BudgetError, match="layers kept whole"):
            structural.prune_to(model, batch, int(budget * structural.parameters_of(model)))
        return
    whole = structural.parameters_of(model)
    small = structural.prune_to(model, batch, int(budget * whole))
    least = 0.9 if name in COARSE and budget < 0.3 else 0.98  # one head of four takes a quarter of the width
    assert least * budget * whole <= structural.parameters_of(small) <= budget * whole
    again, _ = made(name)
    architecture.shrink(again, architecture.shapes(small), architecture.sizes(small))
    again.load_state_dict(small.state_dict())
    for one, other in zip(answers(again, batch), answers(small, batch), strict=True):
        assert torch.equal(one, other)
