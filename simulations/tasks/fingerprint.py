"""Fingerprint of a task's data, by which processes tell whether they have the same examples."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray

from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.task import Splits

SAMPLED = 64
"""Inputs of each part that are read; all targets are."""


def of(splits: Splits) -> str:
    """Return a hash of the four parts: shapes, types, all targets, and inputs evenly from the first to the last.

    >>> from fedpress.compression.models.task import Examples
    >>> part = Examples(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 1]))
    >>> other = Examples(part.inputs + 1, part.targets)
    >>> of(Splits(part, part, part, part)) == of(Splits(part, part, part, other))
    False
    """
    digest = sha256()
    for name, (inputs, targets) in splits._asdict().items():
        count = model_inputs.count(inputs)
        rows: NDArray[np.int64] = np.unique(np.linspace(0, max(0, count - 1), SAMPLED).astype(np.int64))[:count]
        sampled = model_inputs.named(model_inputs.take(inputs, torch.from_numpy(rows))) if count else {}
        forms = ", ".join(f"{each} {part.dtype} {tuple(part.shape[1:])}" for each, part in sampled.items())
        digest.update(f"{name} {count} {forms} {targets.dtype} {tuple(targets.shape)}".encode())
        for tensor in (*sampled.values(), targets):
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
