"""Attention is torch's own with the same weights, what it mixes by can be recorded, and it counts its heads itself."""

import pytest
import torch
from torch import nn

from fedpress.compression.models.attention import SelfAttention
from fedpress.compression.models.distillation import stages


@pytest.mark.parametrize("causal", [False, True])
def test_it_answers_as_torch_s_own_does(causal: bool) -> None:
    torch.manual_seed(0)
    ours, x = SelfAttention(12, 3, causal), torch.randn(2, 5, 12)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
    answer, maps = theirs(x, x, x, attn_mask=hidden, average_attn_weights=False)
    with stages.recording(ours, attention=True) as record:
        torch.testing.assert_close(ours(x), answer)
    torch.testing.assert_close(record.maps[0], maps)


def test_what_comes_later_is_not_seen() -> None:
    torch.manual_seed(0)
    attention, x = SelfAttention(8, 2, causal=True), torch.randn(1, 6, 8)
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(attention(changed)[:, :4], attention(x)[:, :4])


@pytest.mark.parametrize(("width", "heads"), [(8, 3), (8, 0), (0, 1)])
def test_a_width_that_heads_do_not_share_is_refused(width: int, heads: int) -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        SelfAttention(width, heads)
