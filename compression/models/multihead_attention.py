"""Torch's multi-head attention, with heads that can be removed.

`nn.MultiheadAttention` divides the width of its inputs by its number of heads to get the size of a head, so that none
of the two can change alone. `MultiheadAttention` has the same tensors under the same names and gives the same answers,
but its heads keep their size, and their number follows from its projections. `resizable` makes the one into the other
in place; a pruned model has it wherever something was removed.

A. Vaswani, N. Shazeer, N. Parmar et al., "Attention Is All You Need", NeurIPS 2017, section 3.2.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class MultiheadAttention(nn.MultiheadAttention):
    """Multi-head attention over the heads that its tensors have.

    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
    >>> before, _ = attention(x, x, x)
    >>> resizable(attention)
    >>> torch.allclose(attention(x, x, x)[0], before, atol=1e-6)
    True

    Attributes:
        head_dim: Entries of a head, which never change.
        num_heads: Number of heads.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the answers, and the attention weights where they are needed.

        Args:
            query: Queries, (N, L, width), (L, N, width) without `batch_first`, or (L, width).
            key: Keys, of S positions.
            value: Values, of S positions.
            key_padding_mask: Keys to leave out (bool), or what is added to their scores: (N, S) or (S,).
            need_weights: Whether weights are returned.
            attn_mask: Scores to leave out (bool), or what is added to them: (L, S) or (N * heads, L, S).
            average_attn_weights: Whether returned weights are means over heads, (N, L, S), or by head.
            is_causal: A hint that the mask is causal; the mask itself is used.
        """
        batched = query.ndim == 3
        parts = [part if batched else part.unsqueeze(0) for part in (query, key, value)]
        if batched and not self.batch_first:
            parts = [part.transpose(0, 1) for part in parts]
        weights = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if self.in_proj_weight is None
            else self.in_proj_weight.chunk(3)
        )
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        queries, keys, values = (
            functional.linear(part, weight, bias).view(*part.shape[:-1], -1, self.head_dim).transpose(1, 2)
            for part, weight, bias in zip(parts, weights, biases, strict=True)
        )
        mask = self._added(attn_mask, key_padding_mask, queries)
        dropout = self.dropout if self.training else 0.0
        maps = None
        if need_weights:
            scores = queries @ keys.transpose(-1, -2) / self.head_dim**0.5
            maps = (scores if mask is None else scores + mask).softmax(-1)
            maps = functional.dropout(maps, dropout) if dropout else maps
            mixed = maps @ values
            maps = maps.mean(1) if average_attn_weights else maps
        else:
            mixed = functional.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        answer = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return answer.squeeze(0), None if maps is None else maps.squeeze(0)
        return answer if self.batch_first else answer.transpose(0, 1), maps

    def _added(self, attn_mask: Tensor | None, padding: Tensor | None, queries: Tensor) -> Tensor | None:
        """Return what both masks add to scores, broadcast to (N, heads, L, S)."""
        total = None
        if attn_mask is not None:
            mask = _scores(attn_mask, queries)
            total = mask.view(len(queries), -1, *mask.shape[1:]) if mask.ndim == 3 else mask
        if padding is not None:
            columns = _scores(padding, queries).view(-1, 1, 1, padding.shape[-1])
            total = columns if total is None else total + columns
        return total


def _scores(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def resizable(model: nn.Module) -> None:
    """Let the heads of all of torch's multi-head attention in a model be removable, in place.

    Layers with keys and values that are added to the sequence keep their kind, and so do subclasses.

    Args:
        model: The model, or one such layer.
    """
    for module in model.modules():
        if type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn:
            module.__class__ = MultiheadAttention
            module._qkv_same_embed_dim = False  # torch's fused kernels for whole encoders know one size of heads only
