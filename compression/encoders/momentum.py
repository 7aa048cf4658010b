"""Momentum correction with factor masking: velocities are accumulated and sent in place of plain updates.

Lin, Han, Mao, Wang and Dally 2018, "Deep Gradient Compression: Reducing the Communication Bandwidth for Distributed
Training", International Conference on Learning Representations (ICLR), sections 3.1 (momentum correction) and 3.2
(momentum factor masking).
"""

from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.encoders.encoder import Encoded, Encoder, summed
from fedpress.compression.tensors import layout as layouts
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.mask import MaskChange
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Sparse, no_arrays

S = TypeVar("S")


class Momentum(NamedTuple, Generic[S]):
    """The state of `momentum_corrected`.

    `masked_positions` and `masked_values` are what masking took out of the velocity for the last payload, until its
    verdict comes: a refused payload gets it back. After a payload of all n entries there are no positions.
    """

    inner: S
    velocity: Vector  # (n,)
    masked_positions: NDArray[np.int64]  # (k,), or (0,)
    masked_values: Vector  # (k,)


def momentum_corrected(inner: Encoder[S], momentum: float = 0.9) -> Encoder[Momentum[S]]:
    """Encode the velocity, velocity = momentum * velocity + update, in place of the update.

    An entry that is sent starts again from a velocity of zero (factor masking): an old velocity would push it on in a
    direction that is stale by then. Training on the client must be without momentum of its own, which would count
    twice. `error_feedback` goes inside: what is kept back is then a sum of velocities, as in the paper.

    Law, with m the momentum and `masked` the sum of what masking has taken out for payloads that were accepted:
    accepted + residual + m / (1 - m) * (velocity + masked) == sum of the updates / (1 - m). Without sending anything
    the residual is the sum of the velocities; where everything is sent every time, masking leaves no momentum at all.

    Args:
        inner: The encoder of the velocity, usually `error_feedback(...)`.
        momentum: 0 (none) to below 1.

    Raises:
        ValueError: The momentum is out of range.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> from fedpress.compression.encoders import encoder, error_feedback, selection
    >>> from fedpress.compression.wire import values
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (2,), "float32"),)))
    >>> top = error_feedback.error_feedback(encoder.sparse(selection.top_k(k=1), values.FLOAT32))
    >>> corrected = momentum_corrected(top, 0.5)
    >>> *_, state = corrected.encode(np.array([4, 2], np.float32), corrected.init(side_info.layout), side_info, 0)
    >>> state.velocity.tolist(), state.inner.residual.tolist()
    ([0.0, 2.0], [0.0, 2.0])
    >>> _, decoded, state = corrected.encode(np.array([1, 1], np.float32), state, side_info, 0)
    >>> decoded.dense().tolist()  # 2 kept back, and a velocity of 0.5 * 2 + 1
    [0.0, 4.0]
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}, expected 0 <= momentum < 1, such as 0.9")

    def init(layout: Layout) -> Momentum[S]:
        return Momentum(inner.init(layout), np.zeros(layout.size, np.float32), *no_arrays())

    def encode(
        update: Vector, state: Momentum[S], side_info: SideInfo, seed: int, addend: Vector | None = None
    ) -> Encoded[Momentum[S]]:
        update = summed(update, addend, side_info.layout)
        velocity = layouts.writable(update)
        with np.errstate(over="ignore", invalid="ignore"):  # the inner encoder refuses what is not finite
            velocity += np.float32(momentum) * state.velocity
        payload, decoded, inner_state = inner.encode(layouts.read_only(velocity), state.inner, side_info, seed)
        if not isinstance(decoded, Sparse):
            masked = Momentum(inner_state, np.zeros_like(velocity), no_arrays()[0], velocity)
            return Encoded(payload, decoded, masked)
        taken_out = velocity[decoded.positions]
        velocity[decoded.positions] = 0
        return Encoded(payload, decoded, Momentum(inner_state, velocity, decoded.positions, taken_out))

    def offset(state: Momentum[S]) -> Vector | None:
        return inner.offset(state.inner)

    def acknowledge(state: Momentum[S], accepted: bool) -> Momentum[S]:
        velocity = state.velocity
        if not accepted and len(state.masked_values) == len(velocity):
            velocity = state.masked_values
        elif not accepted:
            velocity[state.masked_positions] = state.masked_values
        return Momentum(inner.acknowledge(state.inner, accepted), velocity, *no_arrays())

    def remap(state: Momentum[S], change: MaskChange) -> tuple[Momentum[S], Vector]:
        inner_state, dropped = inner.remap(state.inner, change)
        return Momentum(inner_state, change.apply(state.velocity), *no_arrays()), dropped

    return Encoder(init, encode, offset, acknowledge, remap)
