"""The mask of the model by epoch, and how it goes to a client that has an older one or none."""

import numpy as np

from fedpress.compression.tensors.mask import Mask
from fedpress.compression.wire import position_set
from fedpress.server.checkpoint.state import State, as_array

KEPT = 4
"""Masks that the newest is coded against: of these last epochs, n / 8 bytes each."""


class Epochs:
    """Counts the masks of a model.

    Epoch 0 is the model without a mask. A model that is sparse from the first round begins with epoch 1.

    Args:
        mask: The first; None: there is none so far.

    Attributes:
        number: of the epoch now; 0 without a mask.
        mask: of this epoch.
    """

    def __init__(self, mask: Mask | None) -> None:
        self.number, self.mask = 0, mask
        self._masks: dict[int, Mask] = {}
        self._coded: dict[int, bytes] = {}  # epoch -> this epoch's mask, coded against that one's
        if mask is not None:
            self.change(mask)

    def change(self, mask: Mask) -> None:
        """Begin the next epoch."""
        self.number, self.mask = self.number + 1, mask
        self._masks[self.number] = mask
        while len(self._masks) > KEPT:
            del self._masks[min(self._masks)]
        self._coded = {}

    def coded(self, known: int | None) -> bytes | None:
        """Return the mask as an order to a client brings it; empty where the client has it, None where there is none.

        Args:
            known: Epoch whose mask the client has, None if it has none.
        """
        if self.mask is None:
            return None
        if known == self.number:
            return b""
        base = known if known in self._masks else 0
        assert base is not None
        if base not in self._coded:
            reference = self._masks[base].positions if base else None
            self._coded[base] = position_set.pack(self.mask.positions, self.mask.size, reference)
        return self._coded[base]

    def saved(self) -> State:
        """Return the masks that are kept, the newest one last."""
        sizes = [mask.size for mask in self._masks.values()]
        bitmaps = [np.empty(0, np.uint8), *(as_array(mask.bitmap) for mask in self._masks.values())]
        return State({"masks": np.concatenate(bitmaps)}, {"number": self.number, "sizes": sizes})

    def restore(self, state: State) -> None:
        """Take up what `saved` returned."""
        sizes, bitmaps = state.meta["sizes"], state.arrays["masks"].tobytes()
        self.number, self._masks, self._coded = state.meta["number"], {}, {}
        first = self.number - len(sizes) + 1
        for epoch, size in enumerate(sizes, first):
            length = -(-size // 8)
            self._masks[epoch], bitmaps = Mask(size, bitmaps[:length]), bitmaps[length:]
        self.mask = self._masks.get(self.number)
