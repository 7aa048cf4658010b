"""Small transformers: what they see, that every size can be cut, and that the cut model is rebuilt from shapes."""

import pytest
import torch
from torch import Tensor, nn

from fedpress.compression.models import architecture
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.transformer import CausalTransformer, VisionTransformer


def characters() -> CausalTransformer:
    torch.manual_seed(0)
    return CausalTransformer(11, 12, width=16, depth=2, heads=4, hidden=24)


def vision() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(8, 4, width=16, depth=2, heads=4, hidden=24, classes=3)


def test_characters_see_nothing_ahead() -> None:
    model = characters()
    one = torch.arange(12)[None] % 11
    other = one.clone()
    other[:, 7:] = 3
    with torch.no_grad():
        first, second = model(one), model(other)
    assert first.shape == (1, 12, 11)
    torch.testing.assert_close(first[:, :7], second[:, :7])
    assert not torch.allclose(first[:, 7:], second[:, 7:])
    torch.testing.assert_close(model(one[:, :5]), first[:, :5])  # a shorter input is the beginning of a longer one


def test_patches_are_told_apart_by_their_place() -> None:
    model = vision().eval()
    images = torch.rand(2, 1, 8, 8)
    mirrored = torch.cat([images[..., 4:], images[..., :4]], dim=-1)  # the same patches, elsewhere
    with torch.no_grad():
        apart = model(images) - model(mirrored)
        nn.init.zeros_(model.positions.weight)
        assert apart.abs().max() > 1e-4
        torch.testing.assert_close(model(images), model(mirrored))


@pytest.mark.parametrize(
    ("model", "example"), [(characters(), torch.zeros(1, 12, dtype=torch.int64)), (vision(), torch.rand(1, 1, 8, 8))]
)
def test_width_heads_and_columns_are_really_removed(model: nn.Module, example: Tensor) -> None:
    small = structural.keep_fraction(model, example, 0.5)
    block, whole = small.blocks[0], model.blocks[0]  # type: ignore[index]
    assert (block.attention.heads, whole.attention.heads) == (2, 4)
    assert (block.hidden[0].out_features, whole.hidden[0].out_features) == (12, 24)
    assert (block.hidden[0].in_features, whole.hidden[0].in_features) == (8, 16)
    assert structural.parameters_of(small) < 0.4 * structural.parameters_of(model)
    assert structural.flops_of(small, example) < 0.5 * structural.flops_of(model, example)
    fresh = characters() if isinstance(model, CausalTransformer) else vision()
    architecture.shrink(fresh, architecture.shapes(small))
    fresh.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(example), small(example))


def test_patches_that_do_not_fill_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match="size must be a multiple of patch, got size 28 and patch 5"):
        VisionTransformer(28, 5, width=8, depth=1, heads=2, hidden=8, classes=2)
