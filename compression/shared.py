"""What both sides know when a payload is made and read."""

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.vector import Layout, Vector

Mask: TypeAlias = NDArray[np.int64]
"""The positions that exist at all when a model is pruned: sorted, strictly increasing."""

Support: TypeAlias = NDArray[np.int64]
"""Positions that both sides hold, to code others against: sorted, strictly increasing."""


class Shared(NamedTuple):
    """What sender and receiver agree on without sending it.

    Attributes:
        layout: The tensors of the vector.
        round: The round of training, from 0.
        epoch: Rises when the layout or the mask changes.
        mask: The positions that exist, or None for all.
        reference: A support that both sides hold, or None.
        predictor: What both sides expect the update to be, such as the last global update: (n,), or None.
    """

    layout: Layout
    round: int = 0
    epoch: int = 0
    mask: Mask | None = None
    reference: Support | None = None
    predictor: Vector | None = None
