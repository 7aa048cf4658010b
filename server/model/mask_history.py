"""The masks of a model by version, and how the newest goes to a client that has an older one or none."""

from typing import NamedTuple

from fedpress.compression.tensors.mask import Mask
from fedpress.compression.wire import position_set

KEPT = 4
"""Masks that the newest is coded against: the last few, n / 8 bytes each."""


class MaskHistoryState(NamedTuple):
    """The version of the mask now, and the last few masks by version."""

    version: int
    masks: dict[int, Mask]


class MaskHistory:
    """Counts the masks of a model.

    Version 0 is the model without a mask. A model that is sparse from the first round begins with version 1.

    Args:
        mask: the first; None: there is none so far.

    Attributes:
        version: of the mask now; 0: there is none.
        mask: the newest.
    """

    def __init__(self, mask: Mask | None) -> None:
        self.version, self.mask = 0, mask
        self._masks: dict[int, Mask] = {}
        self._coded: dict[int, bytes] = {}  # mask version of a client -> the newest mask, coded against that one
        if mask is not None:
            self.change(mask)

    def change(self, mask: Mask) -> None:
        """Take over the next mask."""
        self.version, self.mask = self.version + 1, mask
        self._masks[self.version] = mask
        while len(self._masks) > KEPT:
            del self._masks[min(self._masks)]
        self._coded = {}

    def coded(self, known: int | None) -> bytes | None:
        """Return the mask as an order to a client brings it; empty where the client has it, None where there is none.

        Args:
            known: version of the mask that the client has, None if it has none.
        """
        if self.mask is None:
            return None
        if known == self.version:
            return b""
        base = known if known in self._masks else 0
        assert base is not None
        if base not in self._coded:
            reference = self._masks[base].positions if base else None
            self._coded[base] = position_set.pack(self.mask.positions, self.mask.size, reference)
        return self._coded[base]

    def state(self) -> MaskHistoryState:
        """Return the masks that are kept."""
        return MaskHistoryState(self.version, self._masks)

    def restore(self, state: MaskHistoryState) -> None:
        """Take up a state."""
        self.version, self._masks, self._coded = state.version, state.masks, {}
        self.mask = self._masks.get(self.version)
