"""Residuals as float16: half the disk, and half the memory between rounds; what rounding drops is counted.

Updates lie near the smallest numbers of float16, so that every block has a unit of its own, a power of two, which
brings the block's largest entry to 2^14 to 2^15. An entry then has an error of at most 2^-11 of itself, and one below
2^-28 of the block's largest at most 2^-39 of that.
"""

from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.encoders.encoder import Encoded, Encoder
from fedpress.compression.encoders.error_feedback import Residual, first_residual
from fedpress.compression.tensors import layout as layouts
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.mask import MaskChange
from fedpress.compression.tensors.side_info import SideInfo

S = TypeVar("S")

SIZE = 1024
"""Entries of a block; the last one may be shorter."""
_PEAK = 15  # a block's largest entry is brought to at most 2^15, float16 ends at 65504
_LEAST = -126  # of the units' exponents: below it float32 has no finer numbers to lose


class Halved(NamedTuple, Generic[S]):
    """The state of `half_precision`; n entries, b blocks."""

    inner: Residual[S]  # its residual is empty, (0,): it stands here
    residual: NDArray[np.float16]  # (n,), in units of its block
    exponents: NDArray[np.int16]  # (b,): a block's unit is 2^exponent
    discarded: NDArray[np.float64]  # (b,): the sum of what rounding has dropped from a block


def half_precision(inner: Encoder[Residual[S]]) -> Encoder[Halved[S]]:
    """Keep the residual as float16 from one payload to the next; what is encoded is made in float32 as ever.

    Law: accepted + residual + discarded == sum of the updates, block by block, where each of these is summed over the
    block's entries, up to the float32 roundings of `error_feedback`. Entry by entry, accepted + residual misses the sum
    of the updates by at most 2^-11 of what was kept back (or 2^-39 of the block's largest), summed over the rounds.
    After a change of the mask the blocks are others, and the first holds what all had discarded.

    Args:
        inner: An encoder whose state is a `Residual`: `error_feedback(...)`, or `step_ahead` around it.

    Raises:
        TypeError: From `init`: the inner encoder has no residual.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> from fedpress.compression.encoders import encoder, error_feedback, selection
    >>> from fedpress.compression.wire import values
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (3,), "float32"),)))
    >>> half = half_precision(error_feedback.error_feedback(encoder.sparse(selection.top_k(k=1), values.FLOAT32)))
    >>> *_, state = half.encode(np.array([3, 2049, 1e-9], np.float32), half.init(side_info.layout), side_info, 0)
    >>> _, decoded, state = half.encode(np.array([0, 0, 1e-9], np.float32), state, side_info, 0)
    >>> decoded.dense().tolist(), state.residual.dtype.name
    ([3.0, 0.0, 0.0], 'float16')
    >>> bool(abs(widened(state)[2] + state.discarded[0] - 2e-9) < 1e-16)
    True
    """

    def init(layout: Layout) -> Halved[S]:
        return _rounded(first_residual(inner, layout, "half_precision"), np.zeros(-(-layout.size // SIZE)))

    def whole(state: Halved[S]) -> Residual[S]:
        return state.inner._replace(residual=widened(state))

    def encode(
        update: Vector, state: Halved[S], side_info: SideInfo, seed: int, addend: Vector | None = None
    ) -> Encoded[Halved[S]]:
        payload, decoded, inner_state = inner.encode(update, whole(state), side_info, seed, addend)
        return Encoded(payload, decoded, _rounded(inner_state, state.discarded))

    def offset(state: Halved[S]) -> Vector | None:
        return inner.offset(whole(state))

    def acknowledge(state: Halved[S], accepted: bool) -> Halved[S]:
        return _rounded(inner.acknowledge(whole(state), accepted), state.discarded)

    def remap(state: Halved[S], change: MaskChange) -> tuple[Halved[S], Vector]:
        inner_state, dropped = inner.remap(whole(state), change)
        discarded = np.zeros(max(1, -(-change.size // SIZE)))  # the blocks are others now: their sum is what is left
        discarded[0] = state.discarded.sum()
        return _rounded(inner_state, discarded[: -(-change.size // SIZE)]), dropped

    return Encoder(init, encode, offset, acknowledge, remap)


def widened(state: Halved[S]) -> Vector:
    """Return the residual as float32: (n,), a new array; exact."""
    residual = state.residual.astype(np.float32)
    for blocks, rows in _pieces(len(residual)):
        residual[blocks] = _scaled(residual[blocks], state.exponents[rows])
    return residual


def _rounded(state: Residual[S], discarded: NDArray[np.float64]) -> Halved[S]:
    """Return the state with its residual as float16. What comes from `widened` stays as it is."""
    residual, n = state.residual, len(state.residual)
    rounded, exponents, dropped = np.empty(n, np.float16), np.empty(len(discarded), np.int16), np.empty_like(discarded)
    for blocks, rows in _pieces(n):
        piece = residual[blocks]
        starts = np.arange(0, len(piece), SIZE)
        mantissas, powers = np.frexp(np.maximum.reduceat(np.abs(piece), starts))
        # A peak of 2^15 stays one: it may have become one by rounding up, and rounding again must change nothing.
        exponents[rows] = np.maximum(powers - (mantissas == 0.5) - _PEAK, _LEAST)
        rounded[blocks] = _scaled(piece, -exponents[rows])
        lost = piece - _scaled(rounded[blocks].astype(np.float32), exponents[rows])
        dropped[rows] = np.add.reduceat(lost, starts, dtype=np.float64)
    return Halved(state._replace(residual=residual[:0].copy()), rounded, exponents, discarded + dropped)


def _pieces(n: int) -> list[tuple[slice, slice]]:
    """Return slices of n entries that stay in the processor's cache, and those of their blocks."""
    step = layouts.BLOCK
    return [(slice(start, start + step), slice(start // SIZE, (start + step) // SIZE)) for start in range(0, n, step)]


def _scaled(piece: Vector, exponents: NDArray[np.int16]) -> Vector:
    """Return the entries times 2^exponent of their block."""
    factors: Vector = np.ldexp(np.float32(1), exponents)
    return np.multiply(piece, np.repeat(factors, SIZE)[: len(piece)])
