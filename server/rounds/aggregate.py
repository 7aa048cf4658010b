"""Weighted means of updates and of buffers, payload after payload: never the updates of all clients at once."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.tensors import buffer_codec
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Update
from fedpress.compression.wire import payloads

LARGEST = 2.0**50
"""Largest magnitude of an entry of an update that is accepted, about 1e15: far beyond any training, and so small that
neither a sum over all clients and rounds overflows float32, nor the squares that adaptive optimizers add up."""
_SCALE = -64
"""Exponent of the factor on sums of buffers: one of float64 may hold the largest number there is. The factor is a power
of two, so it changes no bit of the mean."""


class Accumulator:
    """Weighted sum of updates in float64, shape (n,); a sparse update costs O(k).

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
        self._sum = np.zeros(size, np.float64)
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
        update.add_to(self._sum, weight)
        if predictor is not None:
            predictor.add_to(self._sum, weight * scale)
        self.weight += weight
        self.count += 1

    def mean(self) -> Vector:
        """Return the weighted mean, float32 (n,).

        Raises:
            ValueError: no update was added.
        """
        if self.weight <= 0:
            raise ValueError("there is no mean of no updates; skip the step when no reply was accepted")
        return (self._sum / self.weight).astype(np.float32)

    def reset(self) -> None:
        """Empty the sum, keeping its memory."""
        self._sum.fill(0)
        self.weight, self.count = 0.0, 0


class BufferMean:
    """Weighted mean of floating buffers; integer and boolean ones take the maximum. All keep their type."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._sums: dict[str, NDArray[Any]] = {}
        self._weight = 0.0

    def add(self, buffers: Mapping[str, NDArray[Any]], weight: float) -> None:
        """Add one client's buffers.

        Args:
            buffers: arrays by name, shaped as in the layout.
            weight: weight of the client.
        """
        self._weight += weight
        for name, value in buffers.items():
            if not np.issubdtype(value.dtype, np.floating):
                held = self._sums.get(name)
                self._sums[name] = value.copy() if held is None else np.maximum(held, value)
            elif name in self._sums:
                self._sums[name] += weight * np.ldexp(value.astype(np.float64), _SCALE)
            else:
                self._sums[name] = weight * np.ldexp(value.astype(np.float64), _SCALE)

    def result(self, held: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the buffers after the round: the mean, or those of `held` that no client sent."""
        mean: dict[str, NDArray[Any]] = dict(held)
        for name, value in self._sums.items():
            dtype = held[name].dtype
            if np.issubdtype(dtype, np.floating):
                scaled = value / self._weight
                limit = np.ldexp(float(np.finfo(dtype).max), _SCALE)  # rounding may take a mean beyond it
                value = np.ldexp(np.where(np.isfinite(scaled), np.clip(scaled, -limit, limit), scaled), -_SCALE)
            mean[name] = value.astype(dtype)
        return mean


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

        Raises:
            ValueError: no reply was added.
        """
        return self._updates.mean(), self._buffers.result(held)

    def reset(self) -> None:
        """Empty the sums, keeping their memory."""
        self._updates.reset()
        self._buffers = BufferMean(self._layout)
