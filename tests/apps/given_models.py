"""Tasks whose models bring weights that no draw gives: what a user means, and what must reach every client."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor, nn

from fedpress.compression.models.task import Examples, Splits, Task

FEATURES, CLASSES = 8, 4


class Tagger(nn.Module):
    """One of each: a table of positions, an LSTM, tied weights, buffers of three kinds, a frozen backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.backbone.requires_grad_(False)
        self.positions = nn.Parameter(torch.sin(torch.arange(16.0)[None] / torch.tensor([[1.0], [10.0]])))
        self.rotation = nn.Linear(16, 16, bias=False)
        nn.init.eye_(self.rotation.weight)
        self.recurrent = nn.LSTM(16, 16, batch_first=True)
        for name, bias in self.recurrent.named_parameters():
            if "bias" in name:
                nn.init.zeros_(bias)
                bias.data[16:32] = 1.0  # of the forget gate
        self.tied = nn.Linear(16, 16, bias=False)
        self.tied.weight = self.rotation.weight
        self.norm = nn.BatchNorm1d(16)
        self.norm.running_mean.copy_(torch.linspace(-1, 1, 16))  # type: ignore[union-attr, operator]
        self.register_buffer("scale", torch.linspace(0.9, 1.1, 16))
        self.register_buffer("order", torch.arange(16).flip(0))
        self.head = nn.Linear(16, CLASSES)
        nn.init.normal_(self.head.weight, std=0.001)
        self.head.bias.data = torch.tensor([0.7, 0.2, 0.05, 0.05]).log()  # the classes' shares

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, (N, classes)."""
        features = self.backbone(inputs)[:, None] + self.positions
        hidden = self.tied(self.recurrent(self.rotation(features))[0][:, -1])
        logits: Tensor = self.head(self.norm(hidden[:, self.order]) * self.scale)  # type: ignore[index]
        return logits


def points() -> tuple[Tensor, Tensor]:
    """Points and their classes, by the signs of two products."""
    inputs = np.random.default_rng(0).normal(size=(1_500, FEATURES)).astype(np.float32)
    classes = (inputs[:, :2].prod(1) > 0).astype(np.int64) + 2 * (inputs[:, 2:4].prod(1) > 0).astype(np.int64)
    return torch.from_numpy(inputs), torch.from_numpy(classes)


class Given(Task):
    """A task with a model of one's choice.

    Args:
        kind: `tagger`; `fitted`: trained until it is good, in `model` itself; `half`: the same in float16 but for its
            arithmetic; `elsewhere`: other weights in every process; `numpy`: drawn from numpy's global generator.
    """

    name = "given"

    def __init__(self, kind: str = "tagger") -> None:
        self.kind = kind

    def model(self) -> nn.Module:
        """Return the model, each time with the same weights under the same seed, but for `elsewhere`."""
        if self.kind == "tagger":
            return Tagger()
        if self.kind == "elsewhere":
            torch.manual_seed(os.getpid())
        net = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))
        if self.kind == "numpy":
            for parameter in net.parameters():
                parameter.data = torch.from_numpy(np.random.normal(0, 0.1, parameter.shape).astype(np.float32))
        if self.kind in ("fitted", "half"):
            fit(net)
        return Half(net) if self.kind == "half" else net

    def data(self) -> Splits:
        """Return 1,000 examples to train, 200 proxy, 100 validation, 200 test."""
        everything = Examples(*points())
        parts = np.split(np.arange(1_500), [1_000, 1_200, 1_300])
        train, proxy, validation, test = (everything.take(part) for part in parts)
        return Splits(train, proxy, validation, test)


class Half(nn.Module):
    """A model whose weights are float16, and whose arithmetic is float32."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net.half()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, (N, classes)."""
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                inputs = nn.functional.linear(inputs, layer.weight.float(), layer.bias.float())
            else:
                inputs = layer(inputs)
        return inputs


def fit(net: nn.Module) -> None:
    """Train on all training examples, as a checkpoint that is brought along was."""
    inputs, targets = points()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs[:1_000]), targets[:1_000]).backward()
        optimizer.step()
