"""A task of your own: a model, its data in four parts, and a loss. Change the three places marked below.

The example draws points around four centers; it runs as it is, so that you can change one thing at a time.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from fedpress.compression.models.task import Examples, Splits, Task, disjoint


class Points(Task):
    """Points in eight dimensions, to be assigned to one of four classes.

    Args:
        noise: How far points lie from their centers. Every argument is an option in the scenario, under `task`.
    """

    name = "points"

    def __init__(self, noise: float = 0.8) -> None:
        self.noise = noise

    # 1. The model. Its weights are where training begins: drawn in the usual way, as fedpress seeds torch, numpy and
    # Python before it calls this, or brought along, such as a pretrained backbone. What has requires_grad=False stays.
    def model(self) -> nn.Module:
        """Two hidden layers of 64 units; 4,996 parameters."""
        return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))

    # 2. The data: inputs float32 (N, ...), targets int64 (N,), the same at every call and in every process.
    def data(self) -> Splits:
        """Four parts that share no example: see the comments in `_splits`."""
        return self._splits

    @cached_property
    def _splits(self) -> Splits:
        draw = np.random.default_rng(0)
        targets = draw.integers(0, 4, 4_000)
        centers = draw.normal(size=(4, 8))
        inputs = centers[targets] + self.noise * draw.normal(size=(4_000, 8))
        everything = Examples(torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(targets))
        parts = {
            "test": np.arange(0, 800),  # read for reporting only
            "validation": np.arange(800, 1_000),  # for choices, such as early stopping
            "proxy": np.arange(1_000, 2_000),  # the server makes students on these, without their labels
            "train": np.arange(2_000, 4_000),  # dealt out to the clients
        }
        disjoint(*parts.values())  # raises if a held-out part leaks into another
        return Splits(**{name: everything.take(indices) for name, indices in parts.items()})

    # 3. The loss, and which answers are right. These two are the defaults; delete them if they suit you.
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch.

        Args:
            outputs: Logits, (N, classes).
            targets: Labels, (N,).
        """
        return nn.functional.cross_entropy(outputs, targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return which answers count as right for the accuracy, bool (N,).

        Args:
            outputs: Logits, (N, classes).
            targets: Labels, (N,).
        """
        return outputs.argmax(dim=1) == targets
