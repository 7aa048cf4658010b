"""A task whose model has a frozen base under a head that is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedpress.compression.models.task import Examples, Splits, Task

FEATURES, WIDTH, CLASSES = 64, 400, 4


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU())
        self.encoder.requires_grad_(False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(inputs))
        return logits


def encoder(seed: int) -> dict[str, Tensor]:
    """Pretrained weights of the encoder, by its own names."""
    torch.manual_seed(seed)
    return Classifier().encoder.state_dict()


class FrozenBase(Task):
    name = "frozen-base"

    def model(self) -> nn.Module:
        return Classifier()

    def data(self) -> Splits:
        draw = torch.Generator().manual_seed(1)
        inputs = torch.randn(200, FEATURES, generator=draw)
        targets = inputs[:, :CLASSES].argmax(dim=1)
        cuts = (slice(0, 120), slice(120, 140), slice(140, 160), slice(160, 200))
        return Splits(*(Examples(inputs[cut], targets[cut]) for cut in cuts))
