"""Weighted means of updates and of buffers, payload after payload: never the updates of all clients at once."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.tensors import buffer_codec, flatten
from fedpress.compression.tensors.layout import BLOCK, Layout, Vector
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Sparse, Update
from fedpress.compression.wire import payloads

LARGEST = 2.0**50
"""Largest magnitude of an entry of an update that is accepted, about 1e15: far beyond any training, and so small that
neither a sum over all clients and rounds overflows float32, nor the squares that adaptive optimizers add up."""
_WAITING = 1 / 8
"""Entries that may wait to be added, as a fraction of the model's: with 8 bytes each a quarter of its memory."""
_PART = 4 * BLOCK
"""Entries of the sum that are added up at a time."""
_SCALE = -64
"""Exponent of the factor on sums of buffers: one of float64 may hold the largest number there is. The factor is a power
of two, so it changes no bit of the mean."""
_LARGEST_BFLOAT16 = (2 - 2.0**-7) * 2.0**127


class _Addend(NamedTuple):
    """A sparse update that waits to be added."""

    positions: NDArray[np.uint32 | np.int64]
    values: Vector
    weight: float


class Accumulator:
    """Weighted sum of updates in float64, shape (n,); a sparse update costs O(k).

    Sparse updates wait as they are, and are added when the mean is asked for, block after block: there is no sum of
    the size of the model, unless they hold so many entries that it is smaller, or an update is dense.

    Law: adding sparse updates == adding their dense forms. The caller fixes the order of the sum, which decides the
    last bits.

    Args:
        size: n, the number of weights.

    >>> from fedpress.compression.tensors.update import Sparse
    >>> total = Accumulator(4)
    >>> total.add(Sparse(np.array([1]), np.array([3.0], np.float32), 4), weight=1)
    >>> total.add(Sparse(np.array([1, 3]), np.array([1.0, 4.0], np.float32), 4), weight=3)
    >>> total.mean()
    array([0. , 1.5, 0. , 3. ], dtype=float32)
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._sum: NDArray[np.float64] | None = None
        self._waiting: list[_Addend] = []
        self.weight = 0.0
        self.count = 0

    def add(self, update: Update, weight: float, predictor: Update | None = None, scale: float = 1.0) -> None:
        """Add one client's update; an absent entry is zero.

        Args:
            update: the decoded update.
            weight: weight of the client.
            predictor: the part of the update that both sides know, and the payload lacks (`cafe.aggregate_feedback`).
            scale: factor of the predictor.
        """
        self._add(update, weight)
        if predictor is not None:
            self._add(predictor, weight * scale)
        self.weight += weight
        self.count += 1

    def _add(self, update: Update, weight: float) -> None:
        if update.size != self._size:
            raise ValueError(f"expected an update of {self._size} entries, got one of {update.size}")
        if self._sum is None and isinstance(update, Sparse):
            kind = np.uint32 if self._size < 1 << 32 else np.int64
            self._waiting.append(_Addend(update.positions.astype(kind), update.values, weight))
            if sum(len(addend.values) for addend in self._waiting) <= _WAITING * self._size:
                return
        elif self._sum is not None:
            update.add_to(self._sum, weight)
            return
        self._sum = np.zeros(self._size, np.float64)
        for start in range(0, self._size, _PART):
            self._add_waiting(self._sum[start : start + _PART], start)
        self._waiting = []
        if not isinstance(update, Sparse):
            update.add_to(self._sum, weight)

    def _add_waiting(self, total: NDArray[np.float64], start: int) -> None:
        """Add what waits to a part of the sum that begins at `start`."""
        for positions, values, weight in self._waiting:
            first, last = np.searchsorted(positions, (start, start + len(total)))
            scaled = values[first:last].astype(np.float64)
            if weight != 1.0:
                scaled *= weight
            np.add.at(total, positions[first:last].astype(np.int64) - start, scaled)

    def mean(self) -> Vector:
        """Return the weighted mean, float32 (n,).

        Raises:
            ValueError: no update was added.
        """
        if self.weight <= 0:
            raise ValueError("there is no mean of no updates; skip the step when no reply was accepted")
        mean = np.empty(self._size, np.float32)
        for start in range(0, self._size, _PART):
            part = mean[start : start + _PART]
            if self._sum is None:
                total = np.zeros(len(part), np.float64)
                self._add_waiting(total, start)
            else:
                total = self._sum[start : start + _PART]
            with np.errstate(over="ignore"):
                np.divide(total, self.weight, out=part, casting="unsafe")
        return mean

    def release(self) -> None:
        """Give back the memory of the sum; the weight stays, and there is no other mean before `reset`."""
        self._sum, self._waiting = None, []

    def reset(self) -> None:
        """Empty the sum."""
        self.release()
        self.weight, self.count = 0.0, 0


class BufferMean:
    """Weighted mean of floating buffers; integer and boolean ones take the maximum. All keep their type.

    Law: an entry that all clients sent alike stays what it is, to the bit, whatever its type: a constant is never
    moved by a rounding of the mean.

    Args:
        layout: layout of the model.
    """

    def __init__(self, layout: Layout) -> None:
        self._brain_floats = {spec.name for spec in layout.buffers if spec.dtype == "bfloat16"}
        self._sums: dict[str, NDArray[Any]] = {}  # in float64, of floating buffers
        self._first: dict[str, NDArray[Any]] = {}  # of floating buffers the first ones, of others the maximum
        self._alike: dict[str, NDArray[np.bool_]] = {}  # entries that all have sent alike
        self._weight = 0.0

    def add(self, buffers: Mapping[str, NDArray[Any]], weight: float) -> None:
        """Add one client's buffers.

        Args:
            buffers: arrays by name, shaped as in the layout, bfloat16 as uint16 patterns.
            weight: weight of the client.
        """
        self._weight += weight
        for name, value in buffers.items():
            first = self._first.get(name)
            if not self._is_floating(name, value):
                self._first[name] = value.copy() if first is None else np.maximum(first, value)
                continue
            wide = flatten.from_bfloat16(value) if name in self._brain_floats else value
            with np.errstate(invalid="ignore"):  # of NaN, whatever its bits
                scaled = weight * np.ldexp(wide.astype(np.float64), _SCALE)
            if first is None:
                self._first[name], self._sums[name] = value, scaled
                self._alike[name] = np.ones(value.shape, np.bool_)
            else:
                self._sums[name] += scaled
                self._alike[name] &= _bits(value) == _bits(first)

    def result(self, held: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the buffers after the round: the mean, or those of `held` that no client sent."""
        mean: dict[str, NDArray[Any]] = dict(held)
        for name, first in self._first.items():
            dtype = held[name].dtype
            if name not in self._sums:
                mean[name] = first.astype(dtype)
                continue
            brain = name in self._brain_floats
            scaled = self._sums[name] / self._weight
            largest = _LARGEST_BFLOAT16 if brain else float(np.finfo(dtype).max)
            limit = np.ldexp(largest, _SCALE)  # rounding may take a mean beyond it
            value = np.ldexp(np.where(np.isfinite(scaled), np.clip(scaled, -limit, limit), scaled), -_SCALE)
            rounded = flatten.to_bfloat16(value.astype(np.float32)) if brain else value.astype(dtype)
            mean[name] = np.where(self._alike[name], first.astype(dtype, copy=False), rounded)
        return mean

    def _is_floating(self, name: str, value: NDArray[Any]) -> bool:
        return name in self._brain_floats or np.issubdtype(value.dtype, np.floating)


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """Return the bits of each entry as an unsigned integer."""
    return array.view(f"u{array.dtype.itemsize}")


class ReplyMean:
    """Weighted mean of replies: of their updates, and of their buffers.

    Args:
        layout: layout of the model.
        prediction: factor of the predictor that clients leave out of their payloads (`cafe.aggregate_feedback`).
    """

    def __init__(self, layout: Layout, prediction: float = 0.0) -> None:
        self._layout = layout
        self._prediction = prediction
        self._updates = Accumulator(layout.size)
        self._buffers = BufferMean(layout)

    def add(
        self,
        payload: bytes,
        buffers: bytes,
        weight: float,
        side_info: SideInfo,
        held: Mapping[str, NDArray[Any]] = buffer_codec.NONE,
    ) -> Update:
        """Decode a reply, add it, and return its update; one that cannot be decoded adds nothing.

        Args:
            payload: the encoded update.
            buffers: buffers as `buffer_codec.pack` writes them.
            weight: weight of the reply, above 0.
            side_info: side information of the update (`GlobalModel.side_info`).
            held: the model's own buffers, by name; entries that are not finite there may come as they are.

        Raises:
            PayloadError: one of the two cannot be decoded, or an entry is larger than `LARGEST`.
        """
        update = payloads.decode(payload, side_info)
        peak = update.peak()
        if not peak <= LARGEST:
            raise errors.ValuesTooLarge(f"an entry of {peak:.3g}, more than {LARGEST:.3g}; did its training diverge?")
        values = buffer_codec.unpack(buffers, self._layout, held) if self._layout.buffers else {}
        self._updates.add(update, weight, side_info.predictor, self._prediction)
        self._buffers.add(values, weight)
        return update

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return self._updates.weight

    def result(self, held: Mapping[str, NDArray[Any]]) -> tuple[Vector, dict[str, NDArray[Any]]]:
        """Return the mean update, float32 (n,), and the buffers after it: those of `held` that no client sent.

        Of the sum only the weight is left.

        Raises:
            ValueError: no reply was added.
        """
        mean = self._updates.mean()
        self._updates.release()
        return mean, self._buffers.result(held)

    def reset(self) -> None:
        """Empty the sums."""
        self._updates.reset()
        self._buffers = BufferMean(self._layout)
