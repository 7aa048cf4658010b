"""Layers whose outputs for an input depend on the rest of its batch, or on chance, and models with them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def net(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), *layers, nn.Linear(8, 3))


def inputs(count: int) -> Tensor:
    """Inputs of unlike sizes, so that statistics of a batch depend on who is in it."""
    draw = torch.Generator().manual_seed(count)
    return torch.randn(count, 5, generator=draw) * torch.linspace(0.1, 3, count)[:, None]


class Quantiles(nn.Module):
    """Ranks within the batch, one of many ways to depend on the other inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x.argsort(dim=0).argsort(dim=0) / len(x)


class Centered(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


class Between(nn.Module):
    """Attention between the inputs of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.T).softmax(dim=1) @ x


class Numbered(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(len(x))[:, None]


DEPENDENT: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(8, track_running_stats=False),
    "Quantiles": Quantiles,
    "Centered": Centered,
    "Between": Between,
    "Numbered": Numbered,
}


class Dropped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5)  # also in evaluation mode


class Counting(nn.Module):
    """Another answer each time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Written(nn.Module):
    """A size of the batch in the code."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(64, -1)
