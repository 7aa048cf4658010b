"""Encoders: an update -> the bytes of one payload.

An encoder is a few pure functions and a state that is handed back, as in optax. Wrappers (`feedback`) take an
encoder and return one.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from fedpress.compression import errors
from fedpress.compression.encoders import selection
from fedpress.compression.quantizers.form import Scheme
from fedpress.compression.tensors import layout
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.mask import MaskChange
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Dense, Sparse
from fedpress.compression.wire import payloads
from fedpress.compression.wire.payloads import decode
from fedpress.compression.wire.values import FLOAT32, ValueFormat

__all__ = ["Encoder", "SideInfo", "decode", "dense", "quantized", "seeded", "sparse"]

S = TypeVar("S")


def _no_offset(state: S) -> Vector | None:
    return None


def _unchanged(state: S, accepted: bool) -> S:
    return state


def _stays(state: S, move: MaskChange) -> tuple[S, Vector]:
    if state is not None:
        raise errors.LayoutError(
            f"the mask of the model has changed, and the encoder's state, a {type(state).__name__}, does not say how it"
            " follows; give the encoder a `follow`, or choose another one for a sparse model"
        )
    return state, np.zeros(len(move.fallen), np.float32)


class Encoder(NamedTuple, Generic[S]):
    """How an update becomes a payload.

    Law: what `decode` reads from the payload is what `encode` put into it, and the state accounts for the rest.

    A state is None or a NamedTuple whose leaves are numpy arrays, None or such NamedTuples, so that any store can keep
    it. A store that brings a state back gives writeable arrays.

    Donation: `state` and `update` belong to `encode` once they are handed over. It may write into the arrays of the
    state, and into `update` where that is writeable, or keep it as part of the new state; the caller must not touch
    either again. A wrapper that still needs the update hands its inner encoder a read-only view. If `encode` raises,
    the state is as it was.

    Attributes:
        init: layout -> the first state.
        encode: update (n,), state, shared, seed -> payload, new state. Raises NonFiniteError, LayoutError.
        start: state -> what is added to the held model before training, (n,), or None for nothing.
        settle: state, whether the server accepted the last payload -> state. Settling twice changes nothing.
        follow: state, how the mask of the model changes -> the state for the new mask, and what of it was kept back for
            entries that the new mask lacks: (fallen,), discarded from here on. Comes after `settle`. Raises LayoutError
            where the method cannot; a state of None has nothing to move.
    """

    init: Callable[[Layout], S]
    encode: Callable[[Vector, S, SideInfo, int], tuple[bytes, S]]
    start: Callable[[S], Vector | None] = _no_offset
    settle: Callable[[S, bool], S] = _unchanged
    follow: Callable[[S, MaskChange], tuple[S, Vector]] = _stays


def _no_state(layout: Layout) -> None:
    return None


def sparse(select: selection.Selector, values: ValueFormat) -> Encoder[None]:
    """Send the entries that `select` chooses, written as `values`.

    Where there is a `SideInfo.reference`, positions are coded against it if that is shorter; the receiver needs it.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> import numpy as np
    >>> from fedpress.compression.wire.values import TERNARY
    >>> layout = Layout((TensorSpec("weight", (4,), "float32"),))
    >>> encoder = sparse(selection.top_k(0.5), TERNARY)
    >>> payload, _ = encoder.encode(np.array([1, -8, 0, 6], np.float32), None, SideInfo(layout), 0)
    >>> len(payload), decode(payload, SideInfo(layout)).dense().tolist()
    (28, [0.0, -7.0, 0.0, 7.0])
    """

    return Encoder(_no_state, SparseEncode(select, values))


class SparseEncode:
    """The `encode` of `sparse`. It can also encode a sum and keep what is left of it, in one pass over memory.

    `error_feedback.error_feedback` looks for this. It is a matter of the function, not a field of `Encoder`, so that a
    wrapper that puts another `encode` in its place cannot leave it standing beside.
    """

    def __init__(self, select: selection.Selector, values: ValueFormat) -> None:
        """Args: select, values: as for `sparse`."""
        self._select = select
        self._values = values

    def __call__(self, update: Vector, state: None, shared: SideInfo, seed: int) -> tuple[bytes, None]:
        """Encode; see `Encoder`."""
        layout.check(update, shared.layout)
        positions = self._select(update, shared, seed)
        chosen = Sparse(positions, update[positions], len(update))
        return payloads.pack(chosen, shared.layout, self._values, shared.reference), None

    def of_sum(self, update: Vector, addend: Vector, shared: SideInfo, seed: int) -> tuple[bytes, Sparse]:
        """Encode update + addend; `update` becomes what the payload does not say of it.

        Law: the same payload as `encode` of the sum; what is returned beside is what `decode` reads from it.

        Args:
            update: float32, shape (n,), writeable; where this raises it holds the sum in part.
            addend: float32, shape (n,); read only.
            shared: As for `Encoder.encode`.
            seed: As for `Encoder.encode`.

        Raises:
            NonFiniteError: The sum holds NaN or infinity.
        """
        positions = selection.of_sum(self._select, update, addend, shared, seed)
        asked = update[positions]
        chosen = Sparse(positions, asked, len(update))
        payload, values = payloads.pack_said(chosen, shared.layout, self._values, shared.reference)
        update[positions] = np.subtract(asked, values, out=asked)
        return payload, Sparse(positions, values, len(update))


def seeded(density: float, values: ValueFormat) -> Encoder[None]:
    """Send k = max(1, round(density * n)) entries at random, at most n, written as `values`; zeros are sent as zeros.

    The places depend on the seed, n and k alone, not on the data. The seed travels in their place, so that an entry
    costs its value and nothing else (`positions.drawn`).

    Args:
        density: The part to draw, 0 < density <= 1.
        values: How they are written.

    Raises:
        ValueError: The density is out of range.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> import numpy as np
    >>> from fedpress.compression.wire.values import FLOAT32
    >>> shared = SideInfo(Layout((TensorSpec("weight", (100,), "float32"),)))
    >>> payload, _ = seeded(0.05, FLOAT32).encode(np.arange(100, dtype=np.float32), None, shared, 7)
    >>> len(payload) - payloads.HEADER_BYTES, decode(payload, shared).values.tolist()
    (28, [12.0, 29.0, 51.0, 68.0, 99.0])
    """
    selection.check_density(density)

    def encode(update: Vector, state: None, shared: SideInfo, seed: int) -> tuple[bytes, None]:
        layout.check(update, shared.layout)
        if not np.isfinite(update).all():
            raise errors.NonFiniteError("the update holds NaN or infinity; did training diverge?")
        n = len(update)
        k = min(n, max(1, round(density * n)))
        if k == n:  # nothing to draw
            return payloads.pack(Dense(update), shared.layout, values), None
        return payloads.pack_drawn(update, k, seed, shared.layout, values), None

    return Encoder(_no_state, encode)


def dense(values: ValueFormat = FLOAT32) -> Encoder[None]:
    """Send every entry, written as `values`.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> import numpy as np
    >>> shared = SideInfo(Layout((TensorSpec("weight", (2,), "float32"),)))
    >>> payload, _ = dense().encode(np.array([1, -8], np.float32), None, shared, 0)
    >>> len(payload), decode(payload, shared).dense().tolist()
    (30, [1.0, -8.0])
    """

    def encode(update: Vector, state: None, shared: SideInfo, seed: int) -> tuple[bytes, None]:
        layout.check(update, shared.layout)
        return payloads.pack(Dense(update), shared.layout, values), None

    return Encoder(_no_state, encode)


def quantized(scheme: Scheme) -> Encoder[None]:
    """Send every entry, written by a scheme that rules the whole body: `qsgd.scheme(4)`, `eden.scheme(2)`, ...

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> import numpy as np
    >>> from fedpress.compression.quantizers import terngrad
    >>> shared = SideInfo(Layout((TensorSpec("weight", (2,), "float32"),)))
    >>> payload, _ = quantized(terngrad.scheme()).encode(np.array([5, -5], np.float32), None, shared, 0)
    >>> len(payload), decode(payload, shared).dense().tolist()
    (28, [5.0, -5.0])
    """

    def encode(update: Vector, state: None, shared: SideInfo, seed: int) -> tuple[bytes, None]:
        layout.check(update, shared.layout)
        if not np.isfinite(update).all():
            raise errors.NonFiniteError("the update holds NaN or infinity; did training diverge?")
        body = scheme.pack(update, shared.layout, seed)
        return payloads.pack_whole(scheme.form, scheme.parameter, body, shared.layout), None

    return Encoder(_no_state, encode)
