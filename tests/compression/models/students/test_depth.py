"""Dropped layers are gone, those left keep their weights, and the shapes alone rebuild what is left."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedpress.compression.models import architecture
from fedpress.compression.models.architecture import ArchitectureError, Stack, UnsupportedLayer
from fedpress.compression.models.students import depth
from fedpress.compression.models.transformer import VisionTransformer


def model(blocks: int = 6) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(8, 4, width=8, depth=blocks, heads=2, hidden=8, classes=3)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4))
def test_one_block_of_so_many_is_kept_with_its_weights(blocks: int, step: int) -> None:
    whole = model(blocks)
    before = list(whole.blocks)
    kept = depth.keep_every(whole, step)
    assert depth.depth_of(kept) == len(before[::step]) and list(whole.blocks) == before
    for old, new in zip(before[::step], kept.blocks, strict=True):  # type: ignore[arg-type]
        assert all(torch.equal(one, other) for one, other in zip(old.parameters(), new.parameters(), strict=True))


def test_blocks_that_add_nothing_can_go_without_a_trace() -> None:
    whole = model()
    for block in list(whole.blocks)[1::2]:
        for layer in (block.attention.out, block.hidden[2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(depth.keep_every(whole)(images), whole(images))


def test_a_fresh_model_is_cut_to_the_blocks_that_are_left() -> None:
    half = depth.keep_every(model())
    fresh = model()
    architecture.shrink(fresh, architecture.shapes(half))
    fresh.load_state_dict(half.state_dict())
    images = torch.rand(2, 1, 8, 8)
    assert depth.depth_of(fresh) == 3 and torch.equal(fresh(images), half(images))


def test_shapes_that_do_not_fit_leave_every_block_in_place() -> None:
    shapes = architecture.shapes(depth.keep_every(model()))
    for wrong in (shapes | {"blocks.0.hidden.0.bias": (9,)}, shapes | {"other": (1,)}):
        whole = model()
        with pytest.raises(ArchitectureError):
            architecture.shrink(whole, wrong)
        assert depth.depth_of(whole) == 6


def test_a_gap_in_the_blocks_is_refused() -> None:
    shapes = {name: shape for name, shape in architecture.shapes(model()).items() if not name.startswith("blocks.1.")}
    with pytest.raises(ArchitectureError, match="no shape for .*blocks.1"):
        architecture.shrink(model(), shapes)


def test_blocks_that_share_all_their_weights_stay() -> None:
    """A stack of one block, run three times, has the tensors of one."""
    layer = nn.Linear(4, 4)
    shared = Stack(layer, layer, layer)
    architecture.shrink(shared, architecture.shapes(shared))
    assert len(shared) == 3


def test_a_model_without_a_stack_is_refused() -> None:
    with pytest.raises(UnsupportedLayer, match="Sequential has no architecture.Stack"):
        depth.keep_every(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="step must be at least 1, got 0"):
        depth.keep_every(model(), 0)
