"""Held-out parts of a data set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import seeds


def stratified(targets: NDArray[np.int64], sizes: Mapping[str, int], seed: int) -> dict[str, NDArray[np.int64]]:
    """Draw disjoint parts in which each label has its share; the rest is the part "train".

    Every label is dealt out evenly along the data (a systematic sample over the examples sorted by label, shuffled
    within a label), so a part of m examples holds each label's share of m, give or take one.

    Args:
        targets: Labels, (N,).
        sizes: Examples in each held-out part, by name.
        seed: Of the draw, which is the same on every machine.

    Returns:
        Index sets by part, "train" among them, each sorted.

    Raises:
        ValueError: The parts would leave nothing to train on.
    """
    count, held = len(targets), sum(sizes.values())
    if held >= count:
        raise ValueError(f"cannot hold out {held} of {count} examples: at least one must be left to train on")
    draw = np.random.default_rng(seeds.derive("hold-out", seed))
    shuffled = draw.permutation(count)
    rest = shuffled[np.argsort(targets[shuffled], kind="stable")]
    parts: dict[str, NDArray[np.int64]] = {}
    for part, size in sizes.items():
        chosen = np.floor((np.arange(size) + draw.random()) * (len(rest) / size)).astype(np.int64) if size else []
        parts[part] = np.sort(rest[chosen])
        rest = np.delete(rest, chosen)
    return {"train": np.sort(rest), **parts}
