"""Selectors: the choice of the entries of an update that are sent.

Law: positions are strictly increasing, and no selected entry is zero. A vector that holds NaN or infinity is refused.
"""

from typing import Literal, Protocol

import numpy as np

from fedpress.compression.encoders.top_k import add, at_least, largest
from fedpress.compression.tensors.layout import Vector, check_finite
from fedpress.compression.tensors.mask import Positions
from fedpress.compression.tensors.side_info import SideInfo


class Selector(Protocol):
    """A function that chooses the entries to send."""

    def __call__(self, vector: Vector, side_info: SideInfo, seed: int, addend: Vector | None = None) -> Positions:
        """Return the positions of the entries to send: int64, strictly increasing, none of a zero.

        Law: with an addend, what is selected is that of `vector + addend`, and `vector` holds this sum afterwards.
        A selector that reads the whole vector adds block by block as it reads; others begin with `top_k.add`.

        Args:
            vector: float32, shape (n,); read, never written but for the addend.
            side_info: Knowledge that sender and receiver share.
            seed: The only source of randomness.
            addend: float32, shape (n,), added to `vector` in place; None for nothing.

        Raises:
            NonFiniteError: `vector` (the sum) holds NaN or infinity. It may hold the sum in part.
        """


def top_k(
    density: float | None = None, *, k: int | None = None, scope: Literal["global", "layer"] = "global"
) -> Selector:
    """Select the k entries of largest magnitude: exactly min(k, non-zeros) of them, ties by lowest position.

    Args:
        density: Fraction to send, 0 < density <= 1; k = max(1, round(density * n)).
        k: The number to send, instead of a density.
        scope: "global" ranks the whole vector; "layer" ranks within each tensor, density or k being per tensor.

    Raises:
        ValueError: Neither or both of density and k are given, or out of range.

    >>> from fedpress.compression.tensors.layout import Layout, TensorSpec
    >>> side_info = SideInfo(Layout((TensorSpec("a", (3,), "float32"), TensorSpec("b", (2,), "float32"))))
    >>> vector = np.array([5, -9, 7, 0, 1], np.float32)
    >>> top_k(0.4)(vector, side_info, 0).tolist(), top_k(k=1, scope="layer")(vector, side_info, 0).tolist()
    ([1, 2], [1, 4])
    """
    if (density is None) == (k is None):
        raise ValueError(f"give either a density or k, not both or neither (density={density}, k={k})")
    if density is not None:
        check_density(density)
    if k is not None and k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    if scope not in ("global", "layer"):
        raise ValueError(f"scope {scope!r} is not one of global, layer")

    def count(n: int) -> int:
        wanted = k if k is not None else max(1, round((density or 0) * n))
        return min(n, wanted)

    def select(vector: Vector, side_info: SideInfo, seed: int, addend: Vector | None = None) -> Positions:
        if scope == "global":
            return largest(vector, count(len(vector)), addend)
        if addend is not None:
            add(vector, addend)
        offsets = side_info.layout.offsets
        parts = [
            largest(vector[start:stop], count(int(stop - start))) + start
            for start, stop in zip(offsets[:-1], offsets[1:], strict=True)
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    return select


def correlated(density: float, fresh: float = 0.1) -> Selector:
    """Select the largest entries within `SideInfo.shared_positions`, and a few of the largest outside.

    Ozfatura, Ozfatura and Gündüz 2021, "Time-Correlated Sparsification for Communication-Efficient Federated Learning".
    Nearly all positions then are shared ones, and cost little (`positions`).

    Law: with k = max(1, round(density * n)), at most n, these are the min(k - round(fresh * k), non-zeros) largest of
    the shared positions, and of the other entries as many of the largest as are missing to k, or all non-zeros if those
    are fewer; ties by lowest position. Without shared positions, or with none among them, it is `top_k`.

    Args:
        density: Fraction to send, 0 < density <= 1.
        fresh: Fraction of the k entries that is reserved for other positions, 0 to 1. With 0 the selection hardly
            ever changes.

    Raises:
        ValueError: The density or `fresh` is out of range.

    >>> from fedpress.compression.tensors.layout import Layout, TensorSpec
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (6,), "float32"),)), shared_positions=np.array([0, 2, 4]))
    >>> correlated(0.5, 1 / 3)(np.array([2, 9, 3, 8, 1, 7], np.float32), side_info, 0)
    array([0, 1, 2])
    """
    check_density(density)
    if not 0 <= fresh <= 1:
        raise ValueError(f"fresh is {fresh}, expected 0 to 1: the part of the entries sent at other positions")

    def select(vector: Vector, side_info: SideInfo, seed: int, addend: Vector | None = None) -> Positions:
        k = min(len(vector), max(1, round(density * len(vector))))
        shared = side_info.shared_positions
        if shared is None or not len(shared):
            return largest(vector, k, addend)
        if addend is not None:
            add(vector, addend)
        inside = shared[_largest(vector[shared], k - round(fresh * k))]
        others = vector.copy()
        others[shared] = 0
        outside = _largest(others, k - len(inside))
        return np.sort(np.concatenate([inside, outside]), kind="stable")  # two rising runs: a merge

    return select


def _largest(vector: Vector, k: int) -> Positions:
    """Return the k largest, as `largest` does, for k = 0 as well."""
    if k:
        return largest(vector, k)
    check_finite(vector)
    return np.empty(0, np.int64)


def threshold(value: float) -> Selector:
    """Select the entries whose magnitude is at least `value` (rounded to float32), and not zero.

    Raises:
        ValueError: The value is negative, or not finite as a float32.

    >>> from fedpress.compression.tensors.layout import Layout, TensorSpec
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (4,), "float32"),)))
    >>> threshold(2.0)(np.array([-2, 1, 0, 3], np.float32), side_info, 0)
    array([0, 3])
    """
    if not 0 <= value <= float(np.finfo(np.float32).max):
        raise ValueError(f"threshold {value} is not a finite float32 of at least 0")
    bound = np.float32(value)

    def select(vector: Vector, side_info: SideInfo, seed: int, addend: Vector | None = None) -> Positions:
        return at_least(vector, bound, addend)

    return select


def check_density(density: float) -> None:
    """Raise ValueError unless 0 < density <= 1."""
    if not 0 < density <= 1:
        raise ValueError(f"density {density} is out of range; expected 0 < density <= 1, such as 0.01 for 1 %")
