"""Side information: knowledge that sender and receiver of a payload share without sending it."""

from typing import NamedTuple

from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.mask import Positions
from fedpress.compression.tensors.update import Update


class SideInfo(NamedTuple):
    """The side information of one payload.

    Attributes:
        layout: The tensors of the vector.
        round: The round of training, from 0.
        shared_positions: Positions that both sides hold and that others are coded against: those of the last change of
            the model, or of a mask. None for none.
        predictor: Prediction of the update up to a factor, n entries: the last move of the model that clients hold.
            None for none.
    """

    layout: Layout
    round: int = 0
    shared_positions: Positions | None = None
    predictor: Update | None = None
