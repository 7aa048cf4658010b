"""What both sides know when a payload is made and read."""

from typing import NamedTuple

from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.mask import Positions
from fedpress.compression.tensors.update import Update


class SideInfo(NamedTuple):
    """What sender and receiver agree on without sending it.

    Attributes:
        layout: The tensors of the vector.
        round: The round of training, from 0.
        shared_positions: Positions that both sides hold, to code positions against: those of the last version's change,
            or of a mask. None for none.
        predictor: What both sides expect of the update, n entries, up to a factor: how the model that clients hold has
            moved; or None.
    """

    layout: Layout
    round: int = 0
    shared_positions: Positions | None = None
    predictor: Update | None = None
