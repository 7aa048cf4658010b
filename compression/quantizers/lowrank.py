"""The form of low-rank updates: two factors for each matrix, and the other tensors as they are.

For Vogels, Karimireddy and Jaggi 2019, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
Optimization", Advances in Neural Information Processing Systems (NeurIPS); the encoder is in `powersgd`.
"""

from typing import NamedTuple

import numpy as np

from fedpress.compression import errors
from fedpress.compression.quantizers.form import Form
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.update import Factors, LowRank

MAX_RANK = 255
LARGEST = float(np.finfo(np.float32).max)
LIMIT = 3.4e38
"""Limit of what two factors may multiply out to. A float32 sum of 255 products may round up by 255 / 2^24 of it, and
3.4e38 is further than that below infinity."""


class FactoredPart(NamedTuple):
    """One tensor as a matrix: the first dimension by all others. `rank` is 0 where it is written as it is."""

    rows: int
    columns: int
    rank: int

    @property
    def numbers(self) -> int:
        """Count of the numbers that are written for the tensor."""
        return self.rank * (self.rows + self.columns) if self.rank else self.rows * self.columns


def parts(layout: Layout, rank: int) -> list[FactoredPart]:
    """Return how each tensor is written: as factors where these are fewer numbers.

    Args:
        layout: The tensors.
        rank: Rank of the factors, at least 1.

    Raises:
        LayoutError: The layout has a mask.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> parts(Layout((TensorSpec("weight", (10, 4, 5), "float32"), TensorSpec("bias", (10,), "float32"))), 2)
    [FactoredPart(rows=10, columns=20, rank=2), FactoredPart(rows=1, columns=10, rank=0)]
    """
    if layout.mask is not None:
        raise errors.LayoutError(
            "the layout has a mask, and low-rank factors need whole matrices; choose another encoder for a sparse model"
        )
    matrices = []
    for spec in layout.parameters:
        rows = spec.shape[0] if len(spec.shape) > 1 and spec.size else 1
        columns = spec.size // rows
        matrices.append(FactoredPart(rows, columns, rank if rank * (rows + columns) < spec.size else 0))
    return matrices


def pack(update: LowRank) -> bytes:
    """Return the body: for each tensor the left factor and the right one, each row by row, or its values."""
    arrays = [array for block in update.blocks for array in (block if isinstance(block, Factors) else (block,))]
    return b"".join(array.astype("<f4").tobytes() for array in arrays)


def _length(rank: int, layout: Layout) -> int | None:
    if not 1 <= rank <= MAX_RANK or layout.mask is not None:
        return None
    return 4 * sum(part.numbers for part in parts(layout, rank))


def _unpack(rank: int, body: memoryview, layout: Layout) -> LowRank:
    written = np.frombuffer(body, "<f4").astype(np.float32)
    if not np.isfinite(written).all():
        raise errors.NonFiniteValues("the payload holds values that are NaN or infinite")
    blocks: list[Vector | Factors] = []
    start = 0
    for part in parts(layout, rank):
        numbers = written[start : start + part.numbers]
        start += part.numbers
        if not part.rank:
            blocks.append(numbers)
            continue
        factors = Factors(*(side.reshape(-1, rank) for side in np.split(numbers, [part.rows * rank])))
        peaks = [np.abs(side).max(axis=0).astype(np.float64) for side in factors]
        if float(peaks[0] @ peaks[1]) > LIMIT:
            raise errors.NonFiniteValues("the product of two factors may be infinite")
        blocks.append(factors)
    return LowRank(tuple(blocks))


FORM = Form("lowrank", 67, _length, _unpack)
