"""Task `digits`: 1,797 handwritten digits of 8x8 pixels, which scikit-learn carries with it; no download.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedpress.compression.models.task import Examples, Splits, Task, disjoint
from fedpress.compression.models.transformer import VisionTransformer
from fedpress.simulations.tasks import architectures
from fedpress.simulations.tasks.hold_out import stratified

TEST, PROXY, VALIDATION = 360, 300, 100
"""Examples held out of training; the other 1,037 are the clients'."""


def cnn() -> nn.Sequential:
    """Return two 3x3 convolutions of 16 and 32 channels, a 2x2 max pool, and 192 hidden units."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 192),
        nn.ReLU(),
        nn.Linear(192, 10),
    )


MODELS: architectures.Models = {
    "cnn": cnn,
    "cnn-bn": lambda: architectures.batch_normalized(cnn()),
    "mlp": lambda: architectures.perceptron(64, 64, classes=10),
    "vit": lambda: VisionTransformer(8, 2, width=32, depth=2, heads=4, hidden=64, classes=10),
}
"""Architectures of the task by name, for its model and for students."""


class Digits(Task):
    """Digits with a convolutional network of 105,226 parameters.

    Inputs are float32 (N, 1, 8, 8) in [0, 1], not normalized further. The parts are stratified by digit and the same
    in every run: seeds of runs do not change them. Central training with SGD reaches 97 to 98 % on the test part.

    Args:
        model: Name of the architecture, in `MODELS`.

    Raises:
        TaskError: There is no such architecture.
    """

    name = "digits"
    architecture = "cnn"

    def __init__(self, model: str = "cnn") -> None:
        self.architecture = architectures.known(MODELS, model)

    def model(self) -> nn.Module:
        """Return a fresh model of the chosen architecture."""
        return MODELS[self.architecture]()

    def students(self) -> architectures.Models:
        """Return the architectures of the task."""
        return MODELS

    def data(self) -> Splits:
        """Return the four parts: 1,037 examples to train, 300 proxy, 100 validation, 360 test."""
        return _splits()


def split_indices(targets: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Return the index array of each part, by its name.

    Args:
        targets: Labels of the whole data set, (N,).
    """
    return stratified(targets, {"test": TEST, "proxy": PROXY, "validation": VALIDATION}, seed=0)


@cache
def _splits() -> Splits:
    pixels, targets = table()
    indices = split_indices(targets)
    disjoint(*indices.values())
    everything = Examples(
        torch.from_numpy((pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)), torch.from_numpy(targets)
    )
    return Splits(**{part: everything.take(chosen) for part, chosen in indices.items()})


def table() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return pixels (N, 64) from 0 to 16 and labels (N,), from the file in scikit-learn's wheel.

    Importing scikit-learn takes a second and 75 MB in each worker, so its reader is used only if the file is not found.
    """
    package = find_spec("sklearn")
    if package and package.origin:
        file = Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
        if file.exists():
            table = np.loadtxt(file, np.int64, delimiter=",")
            return table[:, :-1], table[:, -1].copy()
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.data.astype(np.int64), data.target.astype(np.int64)
