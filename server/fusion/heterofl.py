"""HeteroFL: models that are slices of one another, and the mean of each weight over the models that have it.

E. Diao, J. Ding, V. Tarokh, "HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous
Clients", ICLR 2021, section 3 and algorithm 1: a smaller model is the leading part of every layer, and the server
averages each weight over the clients that hold it. The paper's scaler, its batch norm and its mask of absent labels are
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.errors import LayoutError
from fedpress.compression.tensors.layout import Layout, Vector


class ModelSlice(NamedTuple):
    """A sliced model after its clients' round.

    Attributes:
        positions: positions of its weights in the whole model, int64 (m,).
        master: its weights after the round, float32 (m,).
        weight: sum of its clients' weights; 0: none of them counts.
    """

    positions: NDArray[np.int64]
    master: Vector
    weight: float


def leading(shape: Sequence[int]) -> tuple[slice, ...]:
    """Return the index of the leading part of an array: that of a smaller shape.

    >>> np.arange(12).reshape(3, 4)[leading((2, 1))].tolist()
    [[0], [4]]
    """
    return tuple(slice(0, size) for size in shape)


def positions(part: Layout, whole: Layout) -> NDArray[np.int64]:
    """Return the positions of a slice's weights in the whole model's vector, int64 (m,).

    Args:
        part: layout of the slice.
        whole: layout of the whole model.

    Raises:
        LayoutError: the part is no slice of the whole, or a model has buffers, which this mean does not cover.
    """
    if whole.buffers or part.buffers:
        raise LayoutError(
            "models that are slices of one another have no buffers, such as running means; this one has"
            f" {(whole.buffers or part.buffers)[0].name!r}"
        )
    positions = []
    for sliced, full, offset in zip(part.parameters, whole.parameters, whole.offsets[:-1], strict=True):
        fits = len(sliced.shape) == len(full.shape) and all(
            a <= b for a, b in zip(sliced.shape, full.shape, strict=True)
        )
        if sliced.name != full.name or not fits:
            raise LayoutError(f"{sliced.name!r} {sliced.shape} is no slice of {full.name!r} {full.shape}")
        positions.append(offset + np.arange(full.size).reshape(full.shape)[leading(sliced.shape)].ravel())
    return np.concatenate([np.empty(0, np.int64), *positions])


def mean(whole: Vector, parts: Sequence[ModelSlice]) -> Vector:
    """Return the mean of each weight over the parts that have it, float32 (n,); weights of no part stay.

    Law: with parts that each are the whole model, this is their weighted mean.

    >>> whole = np.float32([1, 1, 1])
    >>> first = ModelSlice(np.array([0, 1]), np.float32([3, 5]), 1.0)
    >>> second = ModelSlice(np.array([0]), np.float32([7]), 3.0)
    >>> mean(whole, [first, second]).tolist()
    [6.0, 5.0, 1.0]

    Args:
        whole: weights of the whole model before the round, float32 (n,).
        parts: sliced models after the round.
    """
    total, weight = np.zeros(len(whole)), np.zeros(len(whole))
    for part in parts:
        total[part.positions] += part.weight * part.master.astype(np.float64)
        weight[part.positions] += part.weight
    return np.where(weight > 0, total / np.maximum(weight, np.finfo(np.float64).tiny), whole).astype(np.float32)
