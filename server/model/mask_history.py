"""Masks of a model by version, and the newest one coded against an older one that a client has."""

from typing import NamedTuple

from fedpress.compression.tensors.mask import Mask
from fedpress.compression.wire import position_set

KEPT = 4
"""Number of masks that are kept to code the newest against, n / 8 bytes each."""


class MaskHistoryState(NamedTuple):
    """Version of the newest mask, and the last few masks by version."""

    version: int
    masks: dict[int, Mask]


class MaskHistory:
    """The newest mask of a model, its version, and its coding for clients.

    Version 0 is the model without a mask. A model that is sparse from the first round begins with version 1.

    Args:
        mask: the first mask; None: there is none yet.

    Attributes:
        version: version of the newest mask; 0: there is none.
        mask: the newest mask.
    """

    def __init__(self, mask: Mask | None) -> None:
        self.version, self.mask = 0, mask
        self._masks: dict[int, Mask] = {}
        self._coded: dict[int, bytes] = {}  # mask version of a client -> the newest mask, coded against that one
        if mask is not None:
            self.change(mask)

    def change(self, mask: Mask) -> None:
        """Add the next mask."""
        self.version, self.mask = self.version + 1, mask
        self._masks[self.version] = mask
        while len(self._masks) > KEPT:
            del self._masks[min(self._masks)]
        self._coded = {}

    def coded(self, known: int | None) -> bytes | None:
        """Return the newest mask as an order brings it.

        Args:
            known: version of the mask that the client has, None if it has none.

        Returns:
            The mask, coded against the client's; empty where the client has it, None where there is none.
        """
        if self.mask is None:
            return None
        if known == self.version:
            return b""
        base = known if known is not None and known in self._masks else 0
        if base not in self._coded:
            reference = self._masks[base].positions if base else None
            self._coded[base] = position_set.pack(self.mask.positions, self.mask.size, reference)
        return self._coded[base]

    def state(self) -> MaskHistoryState:
        """Return the version and the masks that are kept."""
        return MaskHistoryState(self.version, self._masks)

    def restore(self, state: MaskHistoryState) -> None:
        """Take up a state."""
        self.version, self._masks, self._coded = state.version, state.masks, {}
        self.mask = self._masks.get(self.version)
