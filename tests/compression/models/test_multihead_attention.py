"""Torch's multi-head attention with removable heads answers as torch's does, whatever the masks and layout."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models import architecture, multihead_attention
from fedpress.compression.models.architecture import ArchitectureError
from fedpress.compression.models.pruning import structural


@settings(max_examples=40, deadline=None)
@given(
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["none", "bool", "float", "by head"]),
    st.booleans(),
    st.sampled_from([(None, None), (6, 10)]),
    st.booleans(),
)
def test_the_answers_are_torchs(
    batch_first: bool, bias: bool, padded: bool, masked: str, weights: bool, sizes: tuple[Any, Any], average: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first, kdim=sizes[0], vdim=sizes[1]).eval()
    ours = copy.deepcopy(plain)
    multihead_attention.resizable(ours)
    shapes = [(3, 4, 8), (3, 5, sizes[0] or 8), (3, 5, sizes[1] or 8)]
    given: list[Tensor] = [torch.randn(shape) for shape in shapes]
    given = given if batch_first else [part.transpose(0, 1) for part in given]
    mask = {
        "none": None,
        "bool": torch.ones(4, 5).triu(1).bool(),
        "float": torch.randn(4, 5),
        "by head": torch.randn(6, 4, 5),
    }[masked]
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]]) if padded else None
    if padded and mask is not None and mask.is_floating_point():
        padding = torch.zeros(3, 5).masked_fill(padding, float("-inf"))
    arguments = {
        "key_padding_mask": padding,
        "attn_mask": mask,
        "need_weights": weights,
        "average_attn_weights": average,
    }
    for one, other in zip(ours(*given, **arguments), plain(*given, **arguments), strict=True):
        if other is None:
            assert one is None
        else:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_one_sequence_without_batch() -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2).eval()
    ours, x = copy.deepcopy(plain), torch.randn(5, 8)
    multihead_attention.resizable(ours)
    for one, other in zip(ours(x, x, x), plain(x, x, x), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.first, self.encoder, self.head = nn.Linear(5, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.encoder(self.first(x)).mean(1))
        return answer


def test_heads_go_and_their_size_stays_also_where_torch_would_fuse_an_encoder() -> None:
    torch.manual_seed(0)
    model, x = Classifier().eval(), torch.randn(2, 6, 5)
    small = structural.keep_fraction(model, x, 0.5)
    for layer in small.encoder.layers:
        assert layer.self_attn.num_heads == 2 and layer.self_attn.head_dim == 4
        assert layer.self_attn.in_proj_weight.shape == (24, 8) and layer.self_attn.out_proj.weight.shape == (8, 8)
    with torch.inference_mode():
        inference = small(x)
    torch.testing.assert_close(inference, small(x), atol=1e-6, rtol=1e-5)
    again = Classifier().eval()
    architecture.shrink(again, architecture.shapes(small), architecture.sizes(small))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))


def test_a_model_that_is_whole_keeps_torchs_own() -> None:
    model = Classifier().eval()
    structural.layers_of(model, torch.zeros(1, 6, 5))
    assert type(model.encoder.layers[0].self_attn) is nn.MultiheadAttention


def test_parts_of_heads_are_refused() -> None:
    attention = nn.MultiheadAttention(8, 2)
    shapes = architecture.shapes(attention) | {"in_proj_weight": (9, 8), "in_proj_bias": (9,)}
    with pytest.raises(ArchitectureError, match="whole heads of 4"):
        architecture.shrink(attention, shapes)
