"""Masks of sparse models: the entries that the vector has, and the change of a vector from one mask to another."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors

Positions: TypeAlias = NDArray[np.int64]
"""Positions of entries in a vector: int64, strictly increasing, shape (k,)."""

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Mask:
    """The entries of a vector that a sparse model has; all others are zero and stay zero.

    Attributes:
        size: Length of the vector without a mask.
        bitmap: One bit an entry, the first in the lowest bit of the first byte; padding bits are 0.

    Raises:
        LayoutError: The bitmap has another length, or marks entries that do not exist.

    >>> mask = Mask.at(np.array([0, 3, 9]), 10)
    >>> mask.count, mask.bitmap.hex(), mask == Mask.of(mask.flags)
    (3, '0902', True)
    """

    size: int
    bitmap: bytes

    def __post_init__(self) -> None:
        left = self.size % 8
        if len(self.bitmap) != -(-self.size // 8) or (left and self.bitmap[-1] >> left):
            raise errors.LayoutError(
                f"a bitmap of {len(self.bitmap)} bytes is no mask of {self.size} entries; is it another model's mask?"
            )

    @classmethod
    def of(cls, flags: NDArray[np.bool_]) -> "Mask":
        """Return the mask of the entries that are true in `flags`, bool of shape (n,)."""
        return cls(len(flags), np.packbits(flags, bitorder="little").tobytes())

    @classmethod
    def at(cls, positions: Positions, size: int) -> "Mask":
        """Return the mask of the entries at some positions.

        Args:
            positions: Positions of the entries, shape (k,), each from 0 to size - 1.
            size: Length of the vector without a mask.
        """
        flags = np.zeros(size, np.bool_)
        flags[positions] = True
        return cls.of(flags)

    @functools.cached_property
    def flags(self) -> NDArray[np.bool_]:
        """Whether the mask has each entry: bool, shape (size,)."""
        bits = np.frombuffer(self.bitmap, np.uint8)
        return np.unpackbits(bits, count=self.size, bitorder="little").view(np.bool_)

    @functools.cached_property
    def positions(self) -> Positions:
        """Positions of the mask's entries: int64, shape (count,), strictly increasing."""
        return np.flatnonzero(self.flags)

    @property
    def count(self) -> int:
        """Number of the mask's entries."""
        return len(self.positions)


class MaskChange(NamedTuple):
    """The change from vectors of one mask to those of another, of the same tensors.

    Law: an entry that both masks have keeps its value, an entry that only the new one has begins at zero, and one that
    only the old one has is gone: `apply(v)` at `destinations` == v at `survivors`, and is 0 elsewhere.

    >>> change = MaskChange.between(Mask.at(np.array([0, 2, 3]), 5), Mask.at(np.array([0, 1, 3, 4]), 5), 5)
    >>> change.apply(np.array([7, 8, 9])).tolist(), change.removed.tolist()
    ([7, 0, 9, 0], [1])
    """

    survivors: Positions  # (s,) in the old vector
    destinations: Positions  # (s,): where these stand in the new one
    removed: Positions  # in the old vector: what the new one lacks
    size: int  # of the new vector

    @classmethod
    def between(cls, before: Mask | None, after: Mask | None, size: int) -> "MaskChange":
        """Return the change from one mask to another.

        Args:
            before: The old mask; None for all entries.
            after: The new mask; None for all entries.
            size: Length of the vector without a mask.
        """
        old = np.arange(size) if before is None else before.positions
        new = np.arange(size) if after is None else after.positions
        stays = np.ones(len(old), np.bool_) if after is None else after.flags[old]
        survivors = np.flatnonzero(stays)
        return cls(survivors, np.searchsorted(new, old[survivors]), np.flatnonzero(~stays), len(new))

    def apply(self, vector: NDArray[T], fill: Any = 0) -> NDArray[T]:
        """Return the vector after the change, a new array.

        Args:
            vector: A vector of the old mask.
            fill: Value of the entries that only the new mask has.
        """
        changed = np.full(self.size, fill, vector.dtype)
        changed[self.destinations] = vector[self.survivors]
        return changed
