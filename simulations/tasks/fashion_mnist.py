"""Task `fashion-mnist`: 70,000 images of clothes, 28x28 gray pixels, ten classes.

Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv:1708.07747, 2017. Read from the four gzip IDX files of the publication, which Debian's package
dataset-fashion-mnist installs.
"""

from __future__ import annotations

import gzip
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedpress.compression.models.task import Examples, Splits, Task, disjoint
from fedpress.compression.models.transformer import VisionTransformer
from fedpress.simulations.tasks import architectures
from fedpress.simulations.tasks.hold_out import stratified
from fedpress.simulations.tasks.registry import TaskError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where the package dataset-fashion-mnist puts the files."""

PROXY, VALIDATION = 5_000, 1_000
"""Held out of the 60,000 training images before they are given to clients; 54,000 are left."""

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def cnn() -> nn.Sequential:
    """Return two 5x5 convolutions of 32 and 64 channels, each with ReLU and 2x2 max pool, then 512 hidden units."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def lenet() -> nn.Sequential:
    """Return the network of NIID-Bench (Li, Diao, Chen and He 2022) and Flower's baseline of it; 44,426 parameters.

    Two 5x5 convolutions of 6 and 16 channels, each with ReLU and 2x2 max pool, then 120 and 84 hidden units.
    """
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def vit() -> VisionTransformer:
    """Return a transformer of six blocks (width 64, 4 heads, 128 hidden units) on 16 patches; 205,706 parameters."""
    return VisionTransformer(28, 7, width=64, depth=6, heads=4, hidden=128, classes=10)


MODELS: architectures.Models = {
    "cnn": cnn,
    "lenet": lenet,
    "cnn-bn": lambda: architectures.batch_normalized(cnn()),
    "mlp": lambda: architectures.perceptron(784, 64, 64, classes=10),
    "vit": vit,
    "vit-small": lambda: VisionTransformer(28, 7, width=48, depth=2, heads=4, hidden=96, classes=10),
    "mlp-left-half": lambda: architectures.perceptron(392, 128, 64, classes=10, view=architectures.LeftHalf()),
    "mlp-coarse": lambda: architectures.perceptron(49, 128, 64, classes=10, view=architectures.Coarse(4)),
    "mlp-edges": lambda: architectures.perceptron(729, 64, 64, classes=10, view=architectures.Edges()),
}
"""Architectures of the task by name, for its model and for students."""


class FashionMNIST(Task):
    """Fashion-MNIST with the convolutional network of 582,026 parameters of McMahan et al. (2017), without padding.

    Inputs are float32 (N, 1, 28, 28) in [0, 1]; neither data nor model normalize further. The held-out parts are
    stratified by class and the same in every run; the test part is the published one.

    Args:
        data_dir: Folder with the four gzip IDX files; by default where Debian's package puts them.
        model: Name of the architecture, in `MODELS`.

    Raises:
        TaskError: There is no such architecture.
    """

    name = "fashion-mnist"
    architecture = "cnn"

    def __init__(self, data_dir: str | None = None, model: str = "cnn") -> None:
        self.data_dir = DEBIAN if data_dir is None else Path(data_dir).expanduser()
        self.architecture = architectures.known(MODELS, model)

    def model(self) -> nn.Module:
        """Return a fresh model of the chosen architecture."""
        # In this memory format, convolutions and pooling are a third faster on a CPU.
        return MODELS[self.architecture]().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def students(self) -> architectures.Models:
        """Return the architectures of the task."""
        return MODELS

    def data(self) -> Splits:
        """Return the four parts: 54,000 examples to train, 5,000 proxy, 1,000 validation, 10,000 test.

        Raises:
            TaskError: The folder or a file is absent, or a file's content is not that of its name.
        """
        return _splits(self.data_dir)


@cache
def _splits(folder: Path) -> Splits:
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        what = f"the folder {folder} does not exist" if not folder.is_dir() else f"{folder} lacks {', '.join(missing)}"
        raise TaskError(
            f"task.data_dir: Fashion-MNIST is not there, {what}. On Debian or Ubuntu: apt-get install"
            f" dataset-fashion-mnist (files in {DEBIAN}). Elsewhere: put the four gzip IDX files of"
            " https://github.com/zalandoresearch/fashion-mnist into a folder and name it:"
            " --set task.data_dir=FOLDER"
        )
    images, labels, test_images, test_labels = (_read(folder / name) for name in FILES)
    for name, inputs, classes in ((FILES[0], images, labels), (FILES[2], test_images, test_labels)):
        if inputs.shape[1:] != (28, 28) or classes.shape != inputs.shape[:1]:
            raise TaskError(
                f"{folder / name}: images {inputs.shape} with labels {classes.shape}, expected (N, 28, 28) with (N,);"
                " do the files belong to one data set?"
            )
        if len(classes) and classes.max() > 9:
            raise TaskError(f"{folder / name}: a label is {classes.max()}, expected 0 to 9; is this Fashion-MNIST?")
    targets = labels.astype(np.int64)
    if len(targets) <= PROXY + VALIDATION:
        raise TaskError(
            f"{folder / FILES[1]}: {len(targets)} training examples, expected 60,000 and at least"
            f" {PROXY + VALIDATION + 1} to hold out {PROXY + VALIDATION}"
        )
    indices = stratified(targets, {"proxy": PROXY, "validation": VALIDATION}, seed=0)
    disjoint(*indices.values())
    parts = {part: _examples(images[chosen], targets[chosen]) for part, chosen in indices.items()}
    return Splits(**parts, test=_examples(test_images, test_labels.astype(np.int64)))


def _examples(images: NDArray[np.uint8], targets: NDArray[np.int64]) -> Examples:
    scaled = images.astype(np.float32)[:, None]
    scaled /= 255
    return Examples(torch.from_numpy(scaled), torch.from_numpy(targets))


def _read(path: Path) -> NDArray[np.uint8]:
    """Read a gzip IDX file of bytes: 0, 0, type 8, number of axes, length of each axis (big-endian), data."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{path}: cannot be unpacked ({error}); was it cut short when it was copied?") from None
    axes = content[3] if len(content) >= 4 else 0
    if content[:3] != b"\0\0\x08" or not 1 <= axes <= 4:
        raise TaskError(f"{path}: starts with {content[:4].hex()}, expected 000008 and the number of axes; no IDX file")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", axes, 4)) if len(content) >= 4 + 4 * axes else ()
    if not shape or len(content) != 4 + 4 * axes + int(np.prod(shape, dtype=np.int64)):
        raise TaskError(f"{path}: {len(content)} bytes do not hold an array of shape {shape}; was the file cut short?")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
