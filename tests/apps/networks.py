"""Small networks that rearrange, share and normalize channels in the ways that models of the field do, by name.

`NETWORKS` has of each a function that makes it, and one that makes a batch for it. `COUNTED` are those in which a
channel counts although it is zero (norms, softmax, means along channels), so that removing it changes the outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fedpress.compression.models import transformer
from fedpress.compression.models.attention import SelfAttention

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {}
COUNTED: set[str] = set()


def network(batch: Callable[[], Any], counted: bool = False) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a class under its name."""

    def register(made: type[nn.Module]) -> type[nn.Module]:
        NETWORKS[made.__name__] = made, batch
        if counted:
            COUNTED.add(made.__name__)
        return made

    return register


def images(channels: int = 1, size: int = 8) -> Callable[[], Tensor]:
    """Return a function that draws three images."""
    return lambda: torch.randn(3, channels, size, size)


def vectors() -> Tensor:
    """Draw four vectors of 12 numbers."""
    return torch.randn(4, 12)


def sequences() -> Tensor:
    """Draw three sequences of 6 vectors of 10 numbers."""
    return torch.randn(3, 6, 10)


def tokens() -> Tensor:
    """Draw two sequences of 7 tokens out of 20."""
    return torch.randint(20, (2, 7))


def pooled(x: Tensor) -> Tensor:
    """Return the means over an image."""
    return x.mean((2, 3))


# ---- concatenation, cutting, order -----------------------------------------------------------------------------------


@network(images(3))
class BesideTheInput(nn.Module):
    """The input itself is concatenated with what a layer makes of it, as in U-Nets and dense blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(9, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(F.relu(self.outer(torch.cat([x, F.relu(self.inner(x))], dim=1)))))


@network(images(3))
class InputLast(nn.Module):
    """As `BesideTheInput`, in the other order and with the input between two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 7, 1)
        self.outer, self.head = nn.Conv2d(15, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([F.relu(self.left(x)), x, torch.tanh(self.right(x))], dim=1)
        return self.head(pooled(F.relu(self.outer(joined))))


@network(images())
class TwiceTheSame(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Conv2d(1, 6, 3), nn.Conv2d(12, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(x))
        return self.head(pooled(F.relu(self.outer(torch.cat([x, -x], dim=1)))))


@network(images())
class DenseBlock(nn.Module):
    """G. Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, with batch norms before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.layers = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.head = nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], dim=1)
        return self.head(pooled(x))


@network(images())
class FlattenedUnlike(nn.Module):
    """Maps of unlike size are flattened, then concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 6, 3, padding=1)
        self.hidden, self.head = nn.Linear(4 * 64 + 6 * 16, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = [F.relu(self.fine(x)).flatten(1), F.max_pool2d(F.relu(self.coarse(x)), 2).flatten(1)]
        return self.head(F.relu(self.hidden(torch.cat(parts, dim=1))))


@network(images(size=4))
class FlattenedLast(nn.Module):
    """Channels come last before the map is flattened, as in code that came from TensorFlow."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.hidden, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(96, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(F.relu(self.inner(x)).permute(0, 2, 3, 1).reshape(len(x), -1))))


@network(images(size=4))
class FlattenedBackwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.hidden, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(96, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(F.relu(self.inner(x)).flip(1).flatten(1))))


@network(images())
class ShuffledByHand(nn.Module):
    """X. Zhang et al., "ShuffleNet", CVPR 2018: channels of grouped convolutions are shuffled between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 12, 1, groups=3)
        self.second, self.head = nn.Conv2d(12, 12, 1, groups=3), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.relu(self.stem(x))))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(pooled(F.relu(self.second(x))))


@network(images())
class ShuffledPlain(nn.Module):
    """A shuffle between layers that are not grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shuffle = nn.Conv2d(1, 12, 3), nn.ChannelShuffle(4)
        self.second, self.head = nn.Conv2d(12, 10, 1), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(F.relu(self.second(self.shuffle(F.relu(self.stem(x)))))))


@network(images())
class SplitAndShuffled(nn.Module):
    """N. Ma et al., "ShuffleNet V2", ECCV 2018: half of the channels pass, all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(1, 12, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.next, self.head = nn.Conv2d(12, 10, 1), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, two = F.relu(self.stem(x)).chunk(2, dim=1)
        x = torch.cat([one, F.relu(self.branch(two))], dim=1)
        n, c, h, w = x.shape
        x = x.reshape(n, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2)
        return self.head(pooled(F.relu(self.next(x))))


@network(vectors)
class Permuted(nn.Module):
    """A fixed permutation by index."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(16, 10), nn.Linear(10, 4)
        self.register_buffer("order", torch.randperm(16, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x))[:, self.order])))


@network(vectors)
class Selected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.head(F.relu(self.second(torch.index_select(x, 1, torch.arange(0, 12, 2)))))


@network(vectors)
class Rolled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(16, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.head(F.relu(self.second(x + x.roll(1, dims=1))))


@network(vectors)
class OutOfNumpy(nn.Module):
    """Half of the answer takes a way that leaves torch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = (
            nn.Linear(*sizes) for sizes in ((12, 8), (8, 9), (8, 9), (9, 4))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        turned = torch.from_numpy(x.detach().numpy()[:, ::-1].copy())
        return self.head(F.relu(self.second(x)) + F.relu(self.third(turned)))


@network(vectors)
class HalvesByNumber(nn.Module):
    """The first channels gate the others; their number stands in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 16), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x[:, :8] * torch.sigmoid(x[:, 8:]))


@network(vectors)
class HalvesOfTheSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 16), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        half = x.shape[1] // 2
        return self.head(x[:, half:] * torch.sigmoid(x[:, :half]))


@network(vectors)
class UnequalHalves(nn.Module):
    """Both halves are used, each by a layer of its own, and cut where half of the size is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(12, 16), nn.Linear(8, 5), nn.Linear(8, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        half = x.shape[1] // 2
        return self.head(F.relu(self.left(x[:, :half]) - self.right(x[:, half:])))


@network(vectors)
class Gated(nn.Module):
    """Y. Dauphin et al., "Language Modeling with Gated Convolutional Networks", ICML 2017, section 2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(8, 12), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.second(F.glu(self.first(x), dim=-1)).chunk(2, dim=-1)
        return self.head(one * F.silu(two))


@network(images())
class ThreeParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(1, 12, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, two, three = torch.split(F.relu(self.stem(x)), 4, dim=1)
        return self.head(pooled(torch.cat([one, F.relu(self.middle(two)), three], dim=1)))


@network(vectors)
class Maxout(nn.Module):
    """I. Goodfellow et al., "Maxout Networks", ICML 2013: neighbors compete."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).view(len(x), -1, 3).amax(2))


@network(vectors)
class MaxoutOverBlocks(nn.Module):
    """As `Maxout`, over blocks that lie apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).view(len(x), 3, -1).amax(1))


@network(vectors)
class WithConstants(nn.Module):
    """A constant that is made in the forward pass, of the size of what it meets, is filled and added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 10), nn.Linear(12, 10), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, two = F.relu(self.first(x)), F.relu(self.second(x))
        both = torch.zeros(len(x), one.shape[1] + two.shape[1], dtype=x.dtype)
        both[:, : one.shape[1]] = one
        both[:, one.shape[1] :] += two
        return self.head(both + torch.ones_like(both) * 0.5)


# ---- images ----------------------------------------------------------------------------------------------------------


@network(images(size=4))
class SizeInTheView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.hidden, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(96, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(F.relu(self.inner(x)).view(-1, 96))))


@network(images())
class BroadcastInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(F.relu(self.outer(F.relu(x + self.inner(x))))))


@network(images(3))
class ResidualInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.back = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.outer, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(F.relu(self.outer(x + self.back(F.relu(self.inner(x)))))))


@network(images())
class ResidualNet(nn.Module):
    """K. He et al., CVPR 2016: two stages, the second with a projection, batch norms with random statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.a_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.b_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c, self.d = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.project, self.head = nn.Conv2d(8, 12, 1, stride=2), nn.Linear(12, 4)
        for norm in (self.stem_norm, self.a_norm, self.b_norm):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(x + self.b_norm(self.b(F.relu(self.a_norm(self.a(x))))))
        x = F.relu(self.project(x) + self.d(F.relu(self.c(x))))
        return self.head(pooled(x))


@network(images())
class PaddedShortcut(nn.Module):
    """The shortcut gets new channels of zeros, He et al.'s option A."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 10, 3, padding=1)
        self.inner, self.head = nn.Conv2d(10, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(F.pad(x, (0, 0, 0, 0, 2, 2)) + self.wide(x))
        return self.head(pooled(F.relu(self.inner(x))))


@network(images())
class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 18, 3, groups=3)
        self.head = nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(F.relu(self.grouped(F.relu(self.stem(x))))))


@network(images())
class Depthwise(nn.Module):
    """Separable convolutions, the second with two outputs a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise, self.point = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 5, 1)
        self.pairs, self.mix = nn.Conv2d(5, 10, 3, groups=5), nn.Conv2d(10, 7, 1)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.point(F.relu6(self.depthwise(F.relu6(self.stem(x))))))
        return self.head(pooled(F.relu(self.mix(F.hardswish(self.pairs(x))))))


@network(images())
class Transposed(nn.Module):
    """A small decoder: transposed convolutions, plain, depthwise and grouped, and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.up, self.each = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ConvTranspose2d(12, 12, 3, groups=12, padding=1)
        self.grouped, self.head = nn.ConvTranspose2d(12, 8, 3, groups=2, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.down(x))
        x = torch.cat([fine, F.relu(self.up(F.relu(self.middle(fine))))], dim=1)
        return self.head(F.relu(self.grouped(F.relu(self.each(x)))))


@network(images())
class PixelShuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.next = nn.Conv2d(1, 16, 3), nn.PixelShuffle(2), nn.Conv2d(4, 6, 3)
        self.down, self.last, self.head = nn.PixelUnshuffle(2), nn.Conv2d(24, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(
            pooled(F.relu(self.last(self.down(F.relu(self.next(self.up(F.relu(self.stem(x)))))[..., :8, :8]))))
        )


@network(images())
class Unfolded(nn.Module):
    """A convolution written as a product with unfolded patches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.patches, self.head = nn.Conv2d(1, 6, 3), nn.Linear(6 * 9, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        columns = F.unfold(F.relu(self.stem(x)), 3).transpose(1, 2)
        return self.head(F.relu(self.patches(columns)).mean(1))


@network(images())
class SqueezeAndExcitation(nn.Module):
    """J. Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.excite = nn.Conv2d(1, 12, 3), nn.Linear(12, 4), nn.Linear(4, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(pooled(x)))))
        return self.head(pooled(x * gate[:, :, None, None].expand_as(x)))


@network(images())
class SpatialAttention(nn.Module):
    """S. Woo et al., "CBAM", ECCV 2018: what channels sum up to weighs all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(1, 12, 3), nn.Conv2d(1, 1, 3, padding=1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(pooled(x * torch.sigmoid(self.gate(x.sum(1, keepdim=True))).expand_as(x)))


@network(images(), counted=True)
class ChannelAttention(nn.Module):
    """Q. Wang et al., "ECA-Net", CVPR 2020: a convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.along, self.next = nn.Conv2d(1, 12, 3), nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(12, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        gate = torch.sigmoid(self.along(pooled(x).unsqueeze(1))).squeeze(1)
        return self.head(pooled(F.relu(self.next(x * gate[:, :, None, None]))))


@network(images(), counted=True)
class Norms(nn.Module):
    """Group norm, instance norm, local response, layer norm over channels that come last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.group = nn.Conv2d(1, 12, 3), nn.GroupNorm(3, 12)
        self.b, self.instance = nn.Conv2d(12, 10, 3), nn.InstanceNorm2d(10, affine=True)
        self.c, self.layer, self.hidden, self.head = (
            nn.Conv2d(10, 8, 1),
            nn.LayerNorm(8),
            nn.Linear(8, 9),
            nn.Linear(9, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.prelu(self.group(self.a(x)), torch.full((1,), 0.2, dtype=x.dtype))
        x = F.relu(self.instance(self.b(x)))
        x = self.layer(self.c(x).permute(0, 2, 3, 1)).mean((1, 2))
        return self.head(F.gelu(self.hidden(x)))


@network(images())
class Rectified(nn.Module):
    """A slope of its own for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.slopes, self.head = nn.Conv2d(1, 8, 3), nn.PReLU(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(F.interpolate(self.slopes(self.stem(x)), scale_factor=2, mode="bilinear")))


@network(images())
class BareScale(nn.Module):
    """Each channel has a scale that is a bare parameter (ConvNeXt's layer scale)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale = nn.Conv2d(1, 8, 3), nn.Parameter(torch.rand(8, 1, 1))
        self.next, self.head = nn.Conv2d(8, 10, 3), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(F.relu(self.next(F.relu(self.stem(x)) * self.scale))))


# ---- shared, reparametrized, bare ------------------------------------------------------------------------------------


@network(vectors)
class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(12, 10), nn.Linear(10, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.head(F.relu(self.again(F.relu(self.again(x)))))


@network(vectors)
class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower, self.both, self.head = nn.Linear(6, 9), nn.Linear(18, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        sides = [F.relu(self.tower(side)) for side in (x[:, :6], x[:, 6:])]
        return self.head(F.relu(self.both(torch.cat(sides, dim=1))))


@network(vectors)
class TwoNames(nn.Module):
    """One layer has two names, and one weight belongs to two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = (nn.Linear(*s) for s in ((12, 9), (9, 9), (9, 9), (9, 4)))
        self.alias = self.first
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.third(F.relu(self.second(F.relu(self.alias(x)))))))


@network(tokens)
class TiedTable(nn.Module):
    """Embedding and output share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(20, 8), nn.Linear(8, 18), nn.Linear(18, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        return self.head(x + self.down(F.gelu(self.up(x))))


@network(vectors)
class WeightNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Linear(12, 10))
        self.second, self.head = nn.Linear(10, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))))


@network(vectors)
class SpectralNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 10), nn.Linear(10, 9)
        self.third, self.head = parametrizations.spectral_norm(nn.Linear(9, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.third(F.relu(self.second(F.relu(self.first(x)))))))


@network(vectors)
class OldWeightNormed(nn.Module):
    """The hook keeps a weight with a history, which cannot be copied as it is."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and still in use
            self.first = nn.utils.weight_norm(nn.Linear(12, 10))
        self.second, self.head = nn.Linear(10, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))))


@network(vectors)
class BareWeights(nn.Module):
    """Parameters of the model itself, in a list, and in a layer of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 10), nn.Linear(10, 9), nn.Linear(9, 8)
        self.list = nn.ParameterList([torch.randn(10), torch.randn(8, 8) / 3])
        self.weight = nn.Parameter(torch.randn(4, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x)) * self.list[0]
        x = F.relu(self.third(F.relu(self.second(x)))) @ self.list[1]
        return F.linear(x, self.weight)


@network(vectors)
class Adapted(nn.Module):
    """E. Hu et al., "LoRA", ICLR 2022: an adapter that starts at zero beside each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(16, 10), nn.Linear(10, 4)
        self.down, self.up = nn.Linear(16, 3, bias=False), nn.Linear(3, 10, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.head(F.relu(self.second(x) + self.up(self.down(x))))


@network(vectors)
class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(12, 8), nn.Linear(12, 8)
        self.pair, self.hidden, self.head = nn.Bilinear(8, 8, 10), nn.Linear(10, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(F.relu(self.pair(self.left(x), self.right(x))))))


@network(vectors, counted=True)
class SoftmaxOfChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.experts, self.head = nn.Linear(12, 10), nn.Linear(10, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.softmax(self.experts(F.normalize(F.relu(self.first(x)))), dim=1))


@network(vectors)
class Noisy(nn.Module):
    """Dropout that is active in evaluation mode, too, by mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 10), nn.Linear(10, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.first(x)), 0.5, training=True)
        return self.head(F.relu(self.second(x + torch.randn_like(x))))


@network(lambda: {"left": torch.randn(3, 12), "scale": torch.tensor(2.0)})
class NamedArguments(nn.Module):
    """Takes named arguments and returns a dict with a nested tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 10), nn.Linear(10, 9), nn.Linear(9, 4)

    def forward(self, left: Tensor, scale: Tensor) -> dict[str, Any]:
        hidden = F.relu(self.second(F.relu(self.first(left)) * scale))
        return {"logits": self.head(hidden), "more": (hidden, None)}


# ---- sequences and transformers --------------------------------------------------------------------------------------


@network(sequences)
class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm, self.gru = (
            nn.Linear(10, 9),
            nn.LSTM(9, 8, batch_first=True),
            nn.GRU(8, 8, batch_first=True),
        )
        self.hidden, self.head = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.gru(self.lstm(F.relu(self.first(x)))[0])
        return self.head(F.relu(self.hidden(x[:, -1])))


@network(sequences)
class OneDimension(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(10, 12, 3), nn.BatchNorm1d(12), nn.Conv1d(12, 8, 2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.norm(self.a(x.transpose(1, 2)))), 2)
        return self.head(F.relu(self.b(F.pad(x, (1, 1)))).mean(2))


@network(sequences, counted=True)
class TorchEncoder(nn.Module):
    """torch's own encoder, whose attention keeps its projections as bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 24, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.first(x)).mean(1))


@network(images(), counted=True)
class BuiltInVision(transformer.VisionTransformer):
    def __init__(self) -> None:
        super().__init__(8, 4, width=12, depth=2, heads=3, hidden=20, classes=4)


@network(tokens, counted=True)
class BuiltInCausal(transformer.CausalTransformer):
    def __init__(self) -> None:
        super().__init__(20, 8, width=12, depth=2, heads=3, hidden=20)


class Bert(nn.Module):
    """J. Devlin et al., "BERT", NAACL 2019, as in the usual implementation: three embeddings, projections apart."""

    def __init__(self, heads_by_number: bool) -> None:
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(20, 12), nn.Embedding(7, 12), nn.Embedding(2, 12)
        self.norm, self.heads, self.size = nn.LayerNorm(12), 3 if heads_by_number else -1, 4
        self.query, self.key, self.value, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.out_norm, self.up, self.down, self.down_norm = (
            nn.LayerNorm(12),
            nn.Linear(12, 24),
            nn.Linear(24, 12),
            nn.LayerNorm(12),
        )
        self.pool, self.head = nn.Linear(12, 12), nn.Linear(12, 4)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, self.size).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1]).expand(1, -1)
        x = self.norm(self.words(x) + self.places(places) + self.kinds(torch.zeros_like(x)))
        query, key, value = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / self.size**0.5
        mixed = (scores.softmax(-1) @ value).permute(0, 2, 1, 3).contiguous()
        x = self.out_norm(x + self.out(mixed.view(*mixed.shape[:2], -1)))
        x = self.down_norm(x + self.down(F.gelu(self.up(x))))
        return self.head(torch.tanh(self.pool(x[:, 0])))


@network(tokens, counted=True)
class BertOfHeadSize(Bert):
    """The number of heads follows from their size."""

    def __init__(self) -> None:
        super().__init__(heads_by_number=False)


@network(tokens, counted=True)
class BertOfHeadCount(Bert):
    """The number of heads stands in the code, and follows."""

    def __init__(self) -> None:
        super().__init__(heads_by_number=True)


@network(tokens, counted=True)
class Gpt(nn.Module):
    """A. Radford et al., 2019: fused queries, keys and values in thirds, a causal mask in a buffer, tied output."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 12), nn.Embedding(7, 12)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(12),
                    "qkv": nn.Linear(12, 36),
                    "out": nn.Linear(12, 12),
                    "norm2": nn.LayerNorm(12),
                    "up": nn.Linear(12, 24),
                    "down": nn.Linear(24, 12),
                }
            )
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 20, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("mask", torch.ones(7, 7).tril().view(1, 1, 7, 7), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, length = x.shape
        x = self.words(x) + self.places(torch.arange(length))
        for block in self.blocks:
            query, key, value = block["qkv"](block["norm"](x)).chunk(3, dim=2)
            query, key, value = (part.view(n, length, -1, 4).transpose(1, 2) for part in (query, key, value))
            scores = query @ key.transpose(-2, -1) / 2
            scores = scores.masked_fill(self.mask[:, :, :length, :length] == 0, float("-inf"))
            x = x + block["out"]((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x)), approximate="tanh"))
        return self.head(self.norm(x))


class RmsNorm(nn.Module):
    """A norm of one's own with a bare scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Llama(nn.Module):
    """H. Touvron et al., 2023: rotary positions, grouped queries, a gated feed-forward network, several blocks."""

    def __init__(self, norm: Callable[[int], nn.Module], depth: int = 2, heads_by_number: bool = False) -> None:
        super().__init__()
        self.words, self.size, self.repeats, self.by_number = nn.Embedding(20, 24), 4, 2, heads_by_number
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": norm(24),
                    "query": nn.Linear(24, 24, bias=False),
                    "key": nn.Linear(24, 12, bias=False),
                    "value": nn.Linear(24, 12, bias=False),
                    "out": nn.Linear(24, 24, bias=False),
                    "norm2": norm(24),
                    "gate": nn.Linear(24, 30, bias=False),
                    "up": nn.Linear(24, 30, bias=False),
                    "down": nn.Linear(30, 24, bias=False),
                }
            )
            for _ in range(depth)
        )
        self.norm, self.head = norm(24), nn.Linear(24, 20, bias=False)
        self.register_buffer("rates", 1.0 / (10000 ** (torch.arange(0, 4, 2).float() / 4)), persistent=False)

    def turned(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * cosine + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sine

    def forward(self, x: Tensor) -> Tensor:
        n, length = x.shape
        x = self.words(x)
        angles = torch.outer(torch.arange(length, dtype=self.rates.dtype), self.rates)
        angles = torch.cat([angles, angles], dim=-1)
        cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.blocks:
            inner = block["norm"](x)
            counts = (6, 3, 3) if self.by_number else (-1, -1, -1)
            query, key, value = (
                block[name](inner).view(n, length, count, self.size).transpose(1, 2)
                for name, count in zip(("query", "key", "value"), counts, strict=True)
            )
            query, key = self.turned(query, cosine, sine), self.turned(key, cosine, sine)
            key, value = (
                part[:, :, None]
                .expand(n, part.shape[1], self.repeats, length, self.size)
                .reshape(n, -1, length, self.size)
                for part in (key, value)
            )
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + block["out"](mixed.transpose(1, 2).reshape(n, length, -1))
            inner = block["norm2"](x)
            x = x + block["down"](F.silu(block["gate"](inner)) * block["up"](inner))
        return self.head(self.norm(x))


@network(tokens, counted=True)
class LlamaOwnNorm(Llama):
    def __init__(self) -> None:
        super().__init__(RmsNorm)


@network(tokens, counted=True)
class LlamaTorchNorm(Llama):
    def __init__(self) -> None:
        super().__init__(nn.RMSNorm)


@network(tokens, counted=True)
class LlamaDeep(Llama):
    """Five blocks, by whose paths a search through the graph would not end, with numbers of heads in the code."""

    def __init__(self) -> None:
        super().__init__(RmsNorm, depth=5, heads_by_number=True)


@network(images(), counted=True)
class VisionOfTokens(nn.Module):
    """A. Dosovitskiy et al., ICLR 2021: a class token and positions that are bare parameters, qkv by reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(1, 12, 4, stride=4), nn.Parameter(torch.randn(1, 1, 12) / 9)
        self.places, self.norm = nn.Parameter(torch.randn(1, 5, 12) / 9), nn.LayerNorm(12)
        self.qkv, self.out, self.norm2 = nn.Linear(12, 36), nn.Linear(12, 12), nn.LayerNorm(12)
        self.up, self.down, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.places
        n, length, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, length, 3, -1, 4).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(n, length, -1)
        x = x + self.out(mixed)
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x[:, 0])


@network(images(), counted=True)
class Mixer(nn.Module):
    """I. Tolstikhin et al., "MLP-Mixer", NeurIPS 2021: layers along patches and along channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.norm2 = nn.Conv2d(1, 10, 2, stride=2), nn.LayerNorm(10), nn.LayerNorm(10)
        self.token_up, self.token_down = nn.Linear(16, 11), nn.Linear(11, 16)
        self.up, self.down, self.head = nn.Linear(10, 18), nn.Linear(18, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.token_down(F.gelu(self.token_up(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


@network(sequences)
class LinearAttention(nn.Module):
    """A. Katharopoulos et al., ICML 2020: products over channels whose features are never zero, by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.head = (
            nn.Linear(10, 12),
            nn.Linear(10, 12),
            nn.Linear(10, 8),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        query, key = F.elu(self.query(x)) + 1, F.elu(self.key(x)) + 1
        mixed = torch.einsum("nlk,nlv->nkv", key, self.value(x))
        return self.head(torch.einsum("nlk,nkv->nlv", query, mixed).mean(1))


COUNTED.add("LinearAttention")


@network(sequences, counted=True)
class CrossAttention(nn.Module):
    """Learned queries, which are an embedding, read a sequence through attention of the house."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.queries = nn.Linear(10, 8), SelfAttention(8, 2), nn.Embedding(3, 8)
        self.keys, self.values, self.head = nn.Linear(8, 8), nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.first(x))
        weights = torch.softmax(self.queries.weight @ self.keys(x).transpose(1, 2), dim=-1)
        return self.head((weights @ self.values(x)).mean(1))
