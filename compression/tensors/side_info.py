"""What both sides know when a payload is made and read."""

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.update import Update

PositionSet: TypeAlias = NDArray[np.int64]
"""Positions: strictly increasing, shape (m,)."""


class SideInfo(NamedTuple):
    """What sender and receiver agree on without sending it.

    Attributes:
        layout: The tensors of the vector.
        round: The round of training, from 0.
        epoch: Rises when the layout or the mask of a pruned model changes.
        reference: A support that both sides hold, to code positions against, or None: positions sent before, or the
            places that a pruned model still has.
        predictor: What both sides expect of the update, n entries, up to a factor: how the model that clients hold has
            moved; or None.
    """

    layout: Layout
    round: int = 0
    epoch: int = 0
    reference: PositionSet | None = None
    predictor: Update | None = None
