"""Digits on a small network with batch normalization: the task of a plain Flower app."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def load_data(partition: int | None, partitions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One client's part of the first 1,500 images, or with `None` the other 297 for testing."""
    digits = load_digits()
    images = torch.from_numpy((digits.data / 16).astype(np.float32))
    labels = torch.from_numpy(digits.target.astype(np.int64))
    if partition is None:
        return images[1500:], labels[1500:]
    return images[partition:1500:partitions], labels[partition:1500:partitions]


def accuracy(model: nn.Module) -> float:
    images, labels = load_data(None, 1)
    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).float().mean())
