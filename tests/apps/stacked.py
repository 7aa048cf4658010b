"""Models with blocks of all makes: in lists and sequences, called with other arguments, counted elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """A block that adds to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.norm(x))


class InPlace(Residual):
    """A block that writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        x += self.layer(self.norm(x))
        return x


class Looped(nn.Module):
    """A list of blocks, one after the other."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Residual(8) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Counted(nn.Module):
    """A list of blocks that is run by a number in the configuration."""

    def __init__(self, blocks: int, settings: dict[str, int] | None = None) -> None:
        super().__init__()
        self.settings = settings or {"depth": blocks, "heads": 4}
        self.layers = nn.ModuleList(Residual(8) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for number in range(self.settings["depth"]):
            x = self.layers[number](x)
        return x


class Branch(nn.Module):
    """A part whose output somebody else adds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(x))


class Lists(nn.Module):
    """A list of lists, none of which has a forward pass."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([Branch(), Branch()]) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for attention, hidden in self.layers:  # type: ignore[misc]
            x = attention(x) + x
            x = hidden(x) + x
        return x


class Named(nn.Module):
    """A block of keyword arguments that returns a tuple, and knows its place."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place, self.body = place, Residual(8)

    def forward(self, *, states: Tensor, cache: dict[int, Tensor]) -> tuple[Tensor, None]:
        cache[self.place] = states
        return self.body(states), None


class Bordered(nn.Module):
    """Blocks that write into a cache, which must be full without gaps."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(Named, range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        cache: dict[int, Tensor] = {}
        for layer in self.layers:
            x, _ = layer(states=x, cache=cache)
        if sorted(cache) != list(range(len(self.layers))):
            raise RuntimeError(f"cache of {sorted(cache)}")
        return x


class Windowed(nn.Module):
    """A block that sees some places around each only."""

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.window, self.norm, self.layer = window, nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.norm(x))
        return x + (y if self.window is None else y + torch.roll(y, self.window, dims=1))


class Sliding(nn.Module):
    """Local and global blocks that alternate."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Windowed((2, None)[number % 2]) for number in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Narrowing(nn.Sequential):
    """Three equal blocks of a sequence between others."""

    def __init__(self) -> None:
        widen = nn.Sequential(nn.Linear(8, 6), nn.ReLU())
        super().__init__(widen, *(Residual(6) for _ in range(3)), nn.Sequential(nn.Linear(6, 4), nn.ReLU()))


class UNet(nn.Module):
    """Blocks whose outputs later ones take up again."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(Residual(8) for _ in range(3))
        self.up = nn.ModuleList(Residual(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for block in self.down:
            x = block(x)
            kept.append(x)
        for block in self.up:
            x = block(x + kept.pop())
        return x


class Parallel(nn.Module):
    """Two lists that belong together, entry by entry."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(Residual(8) for _ in range(blocks))
        self.second: Any = nn.ModuleList(Residual(8) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second, strict=False):
            x = second(first(x))
        return x
