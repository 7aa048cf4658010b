"""Encoders: an update -> the bytes of one payload.

An encoder is a few pure functions and a state that is handed back, as in optax. Wrappers (`error_feedback`) take an
encoder and return one.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from fedpress.compression import errors
from fedpress.compression.encoders import selection, top_k
from fedpress.compression.quantizers.form import Scheme
from fedpress.compression.tensors import layout as layouts
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.mask import MaskChange
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Dense, Sparse, Update
from fedpress.compression.wire import payloads
from fedpress.compression.wire.payloads import decode
from fedpress.compression.wire.values import FLOAT32, ValueFormat

__all__ = ["Encode", "Encoded", "Encoder", "SideInfo", "decode", "dense", "quantized", "seeded", "sparse", "summed"]

S = TypeVar("S")


class Encoded(NamedTuple, Generic[S]):
    """The result of `encode`.

    Law: `payloads.decode(payload, side_info)` == `decoded`, bit for bit, so that a sender never needs to decode.

    Attributes:
        payload: The bytes to send.
        decoded: The update that the receiver reads from them. Sparse where the payload is. Its arrays may be part of
            the new state, and none of them is the update that was given: read only.
        state: The new state.
    """

    payload: bytes
    decoded: Update
    state: S


class Encode(Protocol[S]):
    """The signature of `Encoder.encode`."""

    def __call__(
        self, update: Vector, state: S, side_info: SideInfo, seed: int, addend: Vector | None = None
    ) -> Encoded[S]:
        """Encode `update`, or `update + addend`.

        Donation: `state` and `update` belong to the encoder once they are handed over. It may write into the arrays of
        the state, and into `update` where that is writeable, or keep it as part of the new state; the caller must not
        touch either again. A wrapper that still needs the update hands its inner encoder a read-only view.

        With an addend, `update` is the caller's again afterwards, and holds the sum. Memory is what limits the work on
        a large vector, so an encoder that reads it once anyway adds block by block as it reads (`sparse`); all others
        begin with `summed`.

        Args:
            update: float32, shape (n,), contiguous.
            state: From `init` or the call before.
            side_info: Knowledge that sender and receiver share.
            seed: The only source of randomness.
            addend: float32, shape (n,), read only; `update` must then be writeable. None for nothing.

        Raises:
            NonFiniteError: The update (the sum) holds NaN or infinity. The state is as it was; `update` may hold the
                sum in part.
            LayoutError: The update is not a vector of the layout.
        """


def summed(update: Vector, addend: Vector | None, layout: Layout) -> Vector:
    """Check an update and add the addend to it in place: the first line of an encoder that does not add as it reads.

    Args:
        update: As for `Encode`.
        addend: As for `Encode`.
        layout: The layout of the vector.

    Returns:
        The update; with an addend a read-only view of the sum, which is the caller's.

    Raises:
        LayoutError: The update is not a vector of the layout.
    """
    layouts.check(update, layout)
    if addend is None:
        return update
    top_k.add(update, addend)
    return layouts.read_only(update)


def _no_offset(state: S) -> Vector | None:
    return None


def _unchanged(state: S, accepted: bool) -> S:
    return state


def _not_remapped(state: S, change: MaskChange) -> tuple[S, Vector]:
    if state is not None:
        raise errors.LayoutError(
            f"the mask of the model has changed, and the encoder's state, a {type(state).__name__}, does not say how it"
            " follows; give the encoder a `remap`, or choose another one for a sparse model"
        )
    return state, np.zeros(len(change.removed), np.float32)


class Encoder(NamedTuple, Generic[S]):
    """The functions that make a payload of an update.

    Law: `decode` reads from the payload what `encode` put into it, and the state accounts for the rest.

    A state is None or a NamedTuple whose leaves are numpy arrays, None or such NamedTuples, so that any store can keep
    it. A store that brings a state back gives writeable arrays.

    Attributes:
        init: layout -> the first state.
        encode: update (n,), state, side_info, seed, addend (n,) or None -> `Encoded`; see `Encode`.
        offset: state -> vector (n,) that is added to the held model before training, or None for nothing.
        acknowledge: state, whether the server accepted the last payload -> state. A second time changes nothing.
        remap: state, how the mask of the model changes -> the state for the new mask, and what of it was kept back for
            entries that the new mask lacks: (removed,), discarded from here on. Comes after `acknowledge`. Raises
            LayoutError where the method cannot; a state of None has nothing to remap.
    """

    init: Callable[[Layout], S]
    encode: Encode[S]
    offset: Callable[[S], Vector | None] = _no_offset
    acknowledge: Callable[[S, bool], S] = _unchanged
    remap: Callable[[S, MaskChange], tuple[S, Vector]] = _not_remapped


def _no_state(layout: Layout) -> None:
    return None


def sparse(select: selection.Selector, values: ValueFormat) -> Encoder[None]:
    """Send the entries that `select` chooses, written as `values`.

    Where there are `SideInfo.shared_positions`, positions are coded against them if that is shorter; the receiver needs
    them.

    Args:
        select: The choice of the entries.
        values: Format of their values.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> import numpy as np
    >>> from fedpress.compression.wire.values import TERNARY
    >>> layout = Layout((TensorSpec("weight", (4,), "float32"),))
    >>> encoder = sparse(selection.top_k(0.5), TERNARY)
    >>> encoded = encoder.encode(np.array([1, -8, 0, 6], np.float32), None, SideInfo(layout), 0)
    >>> len(encoded.payload), encoded.decoded.dense().tolist()
    (28, [0.0, -7.0, 0.0, 7.0])
    """

    def encode(
        update: Vector, state: None, side_info: SideInfo, seed: int, addend: Vector | None = None
    ) -> Encoded[None]:
        layouts.check(update, side_info.layout)
        positions = select(update, side_info, seed, addend)
        chosen = Sparse(positions, update[positions], len(update))
        return Encoded(*payloads.pack(chosen, side_info.layout, values, side_info.shared_positions), None)

    return Encoder(_no_state, encode)


def seeded(density: float, values: ValueFormat) -> Encoder[None]:
    """Send k = max(1, round(density * n)) entries at random, at most n, written as `values`; zeros are sent as zeros.

    The places depend on the seed, n and k alone, not on the data. The seed travels in their place, so that an entry
    costs its value and nothing else (`positions.drawn`).

    Args:
        density: Fraction of the entries, 0 < density <= 1.
        values: Format of their values.

    Raises:
        ValueError: The density is out of range.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> import numpy as np
    >>> from fedpress.compression.wire.values import FLOAT32
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (100,), "float32"),)))
    >>> encoded = seeded(0.05, FLOAT32).encode(np.arange(100, dtype=np.float32), None, side_info, 7)
    >>> len(encoded.payload) - payloads.HEADER_BYTES, encoded.decoded.values.tolist()
    (28, [12.0, 29.0, 51.0, 68.0, 99.0])
    """
    selection.check_density(density)

    def encode(
        update: Vector, state: None, side_info: SideInfo, seed: int, addend: Vector | None = None
    ) -> Encoded[None]:
        update = summed(update, addend, side_info.layout)
        layouts.check_finite(update)
        n = len(update)
        k = min(n, max(1, round(density * n)))
        if k == n:  # nothing to draw
            return Encoded(*payloads.pack(Dense(update), side_info.layout, values), None)
        return Encoded(*payloads.pack_drawn(update, k, seed, side_info.layout, values), None)

    return Encoder(_no_state, encode)


def dense(values: ValueFormat = FLOAT32) -> Encoder[None]:
    """Send every entry, written as `values`.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> import numpy as np
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (2,), "float32"),)))
    >>> encoded = dense().encode(np.array([1, -8], np.float32), None, side_info, 0)
    >>> len(encoded.payload), encoded.decoded.dense().tolist()
    (30, [1.0, -8.0])
    """

    def encode(
        update: Vector, state: None, side_info: SideInfo, seed: int, addend: Vector | None = None
    ) -> Encoded[None]:
        update = summed(update, addend, side_info.layout)
        return Encoded(*payloads.pack(Dense(update), side_info.layout, values), None)

    return Encoder(_no_state, encode)


def quantized(scheme: Scheme) -> Encoder[None]:
    """Send every entry, written by a scheme that rules the whole body: `qsgd.scheme(4)`, `eden.scheme(2)`, ...

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> import numpy as np
    >>> from fedpress.compression.quantizers import terngrad
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (2,), "float32"),)))
    >>> encoded = quantized(terngrad.scheme()).encode(np.array([5, -5], np.float32), None, side_info, 0)
    >>> len(encoded.payload), encoded.decoded.dense().tolist()
    (28, [5.0, -5.0])
    """

    def encode(
        update: Vector, state: None, side_info: SideInfo, seed: int, addend: Vector | None = None
    ) -> Encoded[None]:
        update = summed(update, addend, side_info.layout)
        layouts.check_finite(update)
        body, decoded = scheme.pack(update, side_info.layout, seed)
        return Encoded(payloads.pack_whole(scheme.form, scheme.parameter, body, side_info.layout), decoded, None)

    return Encoder(_no_state, encode)
