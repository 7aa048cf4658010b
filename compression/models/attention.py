"""Multi-head self-attention whose heads can be removed.

A. Vaswani, N. Shazeer, N. Parmar et al., "Attention Is All You Need", NeurIPS 2017, section 3.2.2. The three
projections are one linear layer, so that a head can be followed from there to the output projection and removed (it
cannot in `nn.MultiheadAttention`, which keeps them as bare parameters and checks their size).

The size of a head is fixed and the number of heads follows from the weights: a layer with fewer rows has fewer heads,
also where a receiver cuts a fresh layer down to the pruned shapes (`architecture.shrink`).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """Self-attention over L positions; if `causal`, each position attends to itself and those before it.

    >>> import torch
    >>> attention = SelfAttention(width=8, heads=2)
    >>> x = torch.zeros(3, 5, 8)
    >>> attention(x).shape, attention.heads
    (torch.Size([3, 5, 8]), 2)

    Args:
        width: Width of inputs and outputs; a head has width / heads entries.
        heads: Initial number of heads.
        causal: Whether later positions are masked.

    Attributes:
        qkv: Projection to queries, keys and values, in this order, each head by head: 3 * heads * head_size rows.
        out: Projection of the concatenated heads back to `width`.
        head_size: Width of a head, which never changes.

    Raises:
        ValueError: `width` is not a multiple of `heads`.
    """

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, both at least 1, got width {width} and heads {heads}")
        self.head_size = width // heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    @property
    def heads(self) -> int:
        """Number of heads left."""
        return self.out.weight.shape[1] // self.head_size

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, L, width) to (N, L, width)."""
        queries, keys, values = self._heads(x)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=self.causal)
        output: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return output

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values, each (N, heads, L, head_size)."""
        parts = self.qkv(x).chunk(3, dim=-1)
        return tuple(part.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for part in parts)

    def extra_repr(self) -> str:
        """Return the settings shown in the module's repr."""
        return f"heads={self.heads}, head_size={self.head_size}, causal={self.causal}"
