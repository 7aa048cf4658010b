"""Small transformers whose heads, feed-forward units, width and blocks can all be pruned.

A. Vaswani, N. Shazeer, N. Parmar et al., "Attention Is All You Need", NeurIPS 2017; pre-norm as in R. Xiong et al.,
"On Layer Normalization in the Transformer Architecture", ICML 2020, which trains without a warm-up. For images:
A. Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.1, with the mean over patches in place of a
class token.

All parameters belong to layers that `pruning.structural` can cut: positions are an embedding, not a bare parameter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedpress.compression.models.attention import SelfAttention


class Block(nn.Module):
    """Transformer block: attention and a feed-forward network, each with a residual connection.

    >>> Block(width=8, heads=2, hidden=16)(torch.zeros(3, 5, 8)).shape
    torch.Size([3, 5, 8])

    Args:
        width: Width of input and output.
        heads: Number of attention heads.
        hidden: Hidden units of the feed-forward network.
        causal: Whether later positions are masked.
    """

    def __init__(self, width: int, heads: int, hidden: int, causal: bool = False) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, causal)
        self.hidden_norm = nn.LayerNorm(width)
        self.hidden = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, L, width) to (N, L, width)."""
        x = x + self.attention(self.attention_norm(x))
        x = x + self.hidden(self.hidden_norm(x))
        return x


class VisionTransformer(nn.Module):
    """Vision transformer: images (N, channels, size, size), cut into square patches, to logits (N, classes).

    >>> VisionTransformer(28, 7, width=32, depth=2, heads=4, hidden=64, classes=10)(torch.zeros(3, 1, 28, 28)).shape
    torch.Size([3, 10])

    Args:
        size: Height and width of an image, in pixels.
        patch: Height and width of a patch, in pixels; a divisor of `size`.
        width: Width of the blocks.
        depth: Number of blocks.
        heads: Number of attention heads of a block.
        hidden: Hidden units of a block's feed-forward network.
        classes: Number of classes.
        channels: Channels of an image.

    Raises:
        ValueError: The patches do not fill the image.
    """

    def __init__(
        self, size: int, patch: int, *, width: int, depth: int, heads: int, hidden: int, classes: int, channels: int = 1
    ) -> None:
        super().__init__()
        if patch < 1 or size % patch:
            raise ValueError(f"size must be a multiple of patch, got size {size} and patch {patch}")
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Embedding((size // patch) ** 2, width)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, classes)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, channels, size, size) to logits (N, classes)."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = self.blocks(x + self.positions(torch.arange(x.shape[1], device=x.device)))
        logits: Tensor = self.output(self.norm(x).mean(dim=1))
        return logits


class CausalTransformer(nn.Module):
    """Language model of characters: (N, L) to logits of the next character at each place, (N, L, labels).

    >>> CausalTransformer(50, 64, width=32, depth=2, heads=4, hidden=64)(torch.zeros(3, 20, dtype=torch.int64)).shape
    torch.Size([3, 20, 50])

    Args:
        labels: Number of distinct characters.
        length: Largest number of characters in an input.
        width: Width of the blocks.
        depth: Number of blocks.
        heads: Number of attention heads of a block.
        hidden: Hidden units of a block's feed-forward network.
    """

    def __init__(self, labels: int, length: int, *, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(labels, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, labels)
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, characters: Tensor) -> Tensor:
        """Map characters, int64 (N, L), to logits (N, L, labels)."""
        x = self.embedding(characters) + self.positions(torch.arange(characters.shape[1], device=characters.device))
        logits: Tensor = self.output(self.norm(self.blocks(x)))
        return logits
