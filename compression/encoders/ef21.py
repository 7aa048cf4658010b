"""EF21: the change of an estimate that client and server both keep is sent.

Richtárik, Sokolov and Fatkhullin 2021, "EF21: A New, Simpler, Theoretically Better, and Practically Faster Error
Feedback", Advances in Neural Information Processing Systems (NeurIPS), algorithm 2.
"""

from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.encoders.encoder import Encoded, Encoder, summed
from fedpress.compression.tensors import layout as layouts
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.mask import MaskChange
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import from_arrays, no_arrays, to_arrays

S = TypeVar("S")


class Estimate(NamedTuple, Generic[S]):
    """The state of `ef21`.

    `sent_positions` and `sent_values` are what is decoded from the last payload; they enter the estimate once it is
    accepted. After a payload of all n entries there are no positions.
    """

    inner: S
    estimate: Vector  # (n,): the sum of what accepted payloads decode to
    sent_positions: NDArray[np.int64]  # (k,), or (0,)
    sent_values: Vector  # (k,)


def ef21(inner: Encoder[S]) -> Encoder[Estimate[S]]:
    """Encode update - estimate, and add what is decoded to the estimate.

    A payload holds how the estimate of this client's update changes, not a step. So the server keeps the sum of all
    payloads and steps along that sum in every round (`server.model.optimizers.ef21`), with all clients in each round.
    Adding each payload once, as after `error_feedback`, would be wrong.

    Laws: the estimate is the sum of what accepted payloads decode to, up to a float32 rounding each. With an inner
    encoder that contracts, |decoded - encoded|^2 <= (1 - a) |encoded|^2 (top-k: a = k / n), so does the estimate:
    |update - estimate'|^2 <= (1 - a) |update - estimate|^2.

    A payload that has no verdict when the next update is encoded counts as accepted. If `encode` raises, the state is
    as it was.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> from fedpress.compression.encoders import encoder, selection
    >>> from fedpress.compression.wire import values
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (3,), "float32"),)))
    >>> feedback = ef21(encoder.sparse(selection.top_k(k=1), values.FLOAT32))
    >>> state = feedback.init(side_info.layout)
    >>> for _ in range(3):  # the same update three times: the estimate gets there
    ...     _, decoded, state = feedback.encode(np.array([3, 1, 2], np.float32), state, side_info, 0)
    ...     print(decoded.dense().tolist())
    [3.0, 0.0, 0.0]
    [0.0, 0.0, 2.0]
    [0.0, 1.0, 0.0]
    """

    def init(layout: Layout) -> Estimate[S]:
        return Estimate(inner.init(layout), np.zeros(layout.size, np.float32), *no_arrays())

    def encode(
        update: Vector, state: Estimate[S], side_info: SideInfo, seed: int, addend: Vector | None = None
    ) -> Encoded[Estimate[S]]:
        update = summed(update, addend, side_info.layout)
        unconfirmed = from_arrays(state.sent_positions, state.sent_values, len(state.estimate))
        change = layouts.writable(update)
        with np.errstate(over="ignore", invalid="ignore"):  # the inner encoder refuses what is not finite
            change -= state.estimate
            unconfirmed.add_to(change, -1.0)
        payload, decoded, inner_state = inner.encode(change, state.inner, side_info, seed)
        unconfirmed.add_to(state.estimate)
        return Encoded(payload, decoded, Estimate(inner_state, state.estimate, *to_arrays(decoded)))

    def offset(state: Estimate[S]) -> Vector | None:
        return inner.offset(state.inner)

    def acknowledge(state: Estimate[S], accepted: bool) -> Estimate[S]:
        if accepted:
            from_arrays(state.sent_positions, state.sent_values, len(state.estimate)).add_to(state.estimate)
        return Estimate(inner.acknowledge(state.inner, accepted), state.estimate, *no_arrays())

    def remap(state: Estimate[S], change: MaskChange) -> tuple[Estimate[S], Vector]:
        inner_state, dropped = inner.remap(state.inner, change)
        return Estimate(inner_state, change.apply(state.estimate), *no_arrays()), dropped

    return Encoder(init, encode, offset, acknowledge, remap)
