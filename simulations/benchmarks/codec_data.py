"""Vectors to measure the codec on: real updates, synthetic ones, and hard cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fedpress.compression.tensors.layout import Vector

if TYPE_CHECKING:
    from fedpress.simulations.scenario.scenario import Scenario


def clustered(n: int, seed: int = 0) -> Vector:
    """Return an update-like vector of shape (n,) whose large entries cluster by layer.

    n positions are cut into about 2 log2(n) layers (the same cuts for every seed); each layer has a log-normal scale
    (sigma 0.8) and is 70 % Laplace and 30 % narrow Gaussian.

    >>> clustered(1000).shape
    (1000,)

    Args:
        n: Number of entries.
        seed: Seed of the values.
    """
    values = np.random.default_rng(seed)
    layers = np.random.default_rng(12345)
    count = max(4, int(np.log2(n) * 2))
    edges = np.concatenate([[0], np.sort(layers.integers(0, n, count - 1)), [n]])
    vector = np.empty(n, np.float32)
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        scale = np.float32(1e-3 * np.exp(layers.normal(0, 0.8)))
        size = stop - start
        if size == 0:
            continue
        gaussian = values.standard_normal(size, dtype=np.float32)
        laplace = gaussian * np.sqrt(values.standard_exponential(size, dtype=np.float32))
        narrow = values.random(size, dtype=np.float32) < 0.3
        vector[start:stop] = np.where(narrow, gaussian * np.float32(0.3), laplace) * scale
    return vector


def uniform(n: int, seed: int = 0) -> Vector:
    """Return independent normal values of shape (n,), whose largest entries have uniform positions.

    Args:
        n: Number of entries.
        seed: Seed of the values.
    """
    return np.random.default_rng(seed).standard_normal(n, dtype=np.float32)


def trained(scenario: Scenario) -> Vector:
    """Return the update of the scenario's first client in round 0, as in a run: trained minus initial weights.

    Raises:
        TaskError: The task's data are missing.
    """
    from fedpress.client.training import train as local
    from fedpress.compression import seeds
    from fedpress.compression.tensors import flatten
    from fedpress.simulations.runs.workload import Workload

    def weights() -> Vector:
        arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        return flatten.flatten(arrays, work.layout)

    work = Workload(scenario)
    model = work.fresh_model()
    before = weights()
    seed = seeds.derive(work.federation, 0, 0, "train")
    local.train(model, work.examples(0), work.task.loss, work.training, seed)
    return weights() - before


def _rare(n: int, seed: int, common: float) -> Vector:
    random = np.random.default_rng(seed)
    return np.where(random.random(n, dtype=np.float32) < 1e-3, uniform(n, seed + 1), np.float32(common))


KINDS: dict[str, Callable[[int, int], Vector]] = {
    "clustered": clustered,
    "uniform": uniform,
    "equal": lambda n, seed: np.full(n, -0.25, np.float32),
    "zeros": lambda n, seed: _rare(n, seed, 0.0),
    "one-value": lambda n, seed: _rare(n, seed, 0.5),
    "few-values": lambda n, seed: np.random.default_rng(seed).integers(-3, 4, n).astype(np.float32) * np.float32(0.5),
    "subnormal": lambda n, seed: (np.random.default_rng(seed).integers(-99, 100, n) * 2.0**-149).astype(np.float32),
}
"""Functions (n, seed) -> vector by name. From "equal" on they are hard cases: ties, zeros, subnormals."""
