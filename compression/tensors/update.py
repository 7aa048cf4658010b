"""Updates: the content of a payload, in forms that add themselves to an accumulator in place.

Law of the accumulator: adding decoded payloads == adding their dense forms.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.tensors.layout import BLOCK, Vector
from fedpress.compression.tensors.mask import Positions


class Sparse(NamedTuple):
    """Some entries of a vector; the others are zero.

    >>> update = Sparse(np.array([1, 3]), np.array([5, -1], np.float32), 4)
    >>> accumulator = np.zeros(4)
    >>> update.add_to(accumulator, weight=2.0)
    >>> accumulator.tolist()
    [0.0, 10.0, 0.0, -2.0]
    """

    positions: Positions  # (k,)
    values: Vector  # (k,)
    size: int  # n

    @property
    def count(self) -> int:  # type: ignore[override]  # k, as on the wire; tuple.count has no use here
        """k, the number of entries."""
        return len(self.values)

    def add_to(self, accumulator: NDArray[Any], weight: float = 1.0) -> None:
        """Add `weight` times this update in place, in O(k).

        Args:
            accumulator: float32 or float64, shape (n,).
            weight: Factor of every entry.

        Raises:
            ValueError: The accumulator has another shape or dtype.
        """
        _check(accumulator, self.size)
        # Cast first: np.add.at is ten times slower on mixed dtypes.
        scaled = self.values.astype(accumulator.dtype)
        if weight != 1.0:
            scaled *= weight
        np.add.at(accumulator, self.positions, scaled)

    def peak(self) -> float:
        """Return the largest magnitude of an entry; NaN where one is."""
        return _peak(self.values)

    def sparse(self) -> "Sparse":
        """Return this update."""
        return self

    def dense(self) -> Vector:
        """Return the whole vector, zeros included."""
        vector = np.zeros(self.size, np.float32)
        vector[self.positions] = self.values
        return vector


class Dense(NamedTuple):
    """All entries of a vector.

    >>> Dense(np.array([0, 2], np.float32)).sparse().positions.tolist()
    [0, 1]
    """

    values: Vector  # (n,)

    @property
    def size(self) -> int:
        """n, the length of the vector."""
        return len(self.values)

    @property
    def count(self) -> int:  # type: ignore[override]
        """k, the number of entries; here n."""
        return len(self.values)

    def add_to(self, accumulator: NDArray[Any], weight: float = 1.0) -> None:
        """Add `weight` times this update in place.

        Args:
            accumulator: float32 or float64, shape (n,).
            weight: Factor of every entry.

        Raises:
            ValueError: The accumulator has another shape or dtype.
        """
        _check(accumulator, self.size)
        for start in range(0, self.size, BLOCK):
            scaled = self.values[start : start + BLOCK].astype(accumulator.dtype)
            if weight != 1.0:
                scaled *= weight
            accumulator[start : start + BLOCK] += scaled

    def peak(self) -> float:
        """Return the largest magnitude of an entry; NaN where one is."""
        peaks = [_peak(self.values[start : start + BLOCK]) for start in range(0, self.size, BLOCK)]
        return float(np.max(peaks, initial=0.0))  # NaN if one is, which `max` would pass over

    def sparse(self) -> Sparse:
        """Return the same entries with their positions, all n of them."""
        return Sparse(np.arange(self.size, dtype=np.int64), self.values, self.size)

    def dense(self) -> Vector:
        """Return the values, not copied."""
        return self.values


class Factors(NamedTuple):
    """A matrix as a product: left @ right.T."""

    left: NDArray[np.float32]  # (rows, rank)
    right: NDArray[np.float32]  # (columns, rank)


class LowRank(NamedTuple):
    """All entries of a vector, each tensor as a matrix of low rank or, where that is shorter, as its values.

    >>> outer = Factors(np.array([[1], [2]], np.float32), np.array([[3], [0], [1]], np.float32))
    >>> update = LowRank((outer, np.array([9], np.float32)))
    >>> accumulator = np.zeros(7)
    >>> update.add_to(accumulator, weight=2.0)
    >>> accumulator.tolist()
    [6.0, 0.0, 2.0, 12.0, 0.0, 4.0, 18.0]
    """

    blocks: tuple[Vector | Factors, ...]  # in the order of the vector; a matrix stands there row by row

    @property
    def size(self) -> int:
        """n, the length of the vector."""
        return sum(len(b.left) * len(b.right) if isinstance(b, Factors) else len(b) for b in self.blocks)

    @property
    def count(self) -> int:  # type: ignore[override]
        """k, the number of entries; here n."""
        return self.size

    @property
    def values(self) -> Vector:
        """All entries, multiplied out: (n,)."""
        return self.dense()

    def add_to(self, accumulator: NDArray[Any], weight: float = 1.0) -> None:
        """Add `weight` times this update in place, multiplied out by blocks of rows.

        Args:
            accumulator: float32 or float64, shape (n,).
            weight: Factor of every entry.

        Raises:
            ValueError: The accumulator has another shape or dtype.
        """
        _check(accumulator, self.size)
        start = 0
        for part in self._pieces():
            Dense(part).add_to(accumulator[start : start + len(part)], weight)
            start += len(part)

    def peak(self) -> float:
        """Return the largest magnitude of an entry; NaN or infinity where the product of the factors is."""
        with np.errstate(over="ignore", invalid="ignore"):
            peaks = [_peak(part) for part in self._pieces()]
        return float(np.max(peaks, initial=0.0))  # NaN if one is, which `max` would pass over

    def sparse(self) -> Sparse:
        """Return the same entries with their positions, all n of them."""
        return Dense(self.dense()).sparse()

    def dense(self) -> Vector:
        """Return all entries, multiplied out."""
        return np.concatenate([np.empty(0, np.float32), *self._pieces()])

    def _pieces(self) -> Iterator[Vector]:
        """Yield the vector piece by piece, always cut in the same places, so that every sum has the same bits."""
        for block in self.blocks:
            if not isinstance(block, Factors):
                yield block
                continue
            rows = max(1, BLOCK // max(1, len(block.right)))
            for first in range(0, len(block.left), rows):
                yield (block.left[first : first + rows] @ block.right.T).ravel()


Update: TypeAlias = Sparse | Dense | LowRank


def no_arrays() -> tuple[Positions, Vector]:
    """Return positions and values of length 0; new arrays, since a state owns its leaves."""
    return np.empty(0, np.int64), np.empty(0, np.float32)


def to_arrays(update: Update) -> tuple[Positions, Vector]:
    """Return positions and values of an update, as a state stores it; positions are empty for an update of all entries.

    Law: `from_arrays(*to_arrays(update), update.size)` adds the same to every entry as `update`.
    """
    return (update.positions if isinstance(update, Sparse) else no_arrays()[0]), update.values


def from_arrays(positions: Positions, values: Vector, size: int) -> Update:
    """Return the update of `to_arrays`.

    Args:
        positions: int64, shape (k,), or (0,) where all entries have a value.
        values: float32, shape (k,).
        size: n, the length of the vector.
    """
    return Dense(values) if len(values) == size else Sparse(positions, values, size)


def _peak(values: NDArray[Any]) -> float:
    return float(np.abs(values).max(initial=0.0))


def _check(accumulator: NDArray[Any], size: int) -> None:
    if accumulator.shape != (size,) or accumulator.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"expected an accumulator of float32 or float64 and shape ({size},), "
            f"got {accumulator.dtype} of shape {accumulator.shape}"
        )
