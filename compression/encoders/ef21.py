"""EF21: send the change of an estimate that client and server both keep.

Richtárik, Sokolov and Fatkhullin 2021, "EF21: A New, Simpler, Theoretically Better, and Practically Faster Error
Feedback", Advances in Neural Information Processing Systems (NeurIPS), algorithm 2.
"""

from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.tensors import layout
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.mask import MaskChange
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Sparse, nothing, remembered
from fedpress.compression.wire import payloads

S = TypeVar("S")


class Estimate(NamedTuple, Generic[S]):
    """The state of `ef21`.

    `sent_positions` and `sent_values` are what the last payload says; they enter the estimate once it is accepted.
    After a payload of all n entries there are no positions.
    """

    inner: S
    estimate: Vector  # (n,): the sum of what accepted payloads say
    sent_positions: NDArray[np.int64]  # (k,), or (0,)
    sent_values: Vector  # (k,)


def ef21(inner: Encoder[S]) -> Encoder[Estimate[S]]:
    """Encode update - estimate, and add what is said to the estimate.

    A payload says how the estimate of this client's update changes, not a step. So the server keeps the sum of all
    payloads and steps along that sum in every round (`server.optimize.ef21`), with all clients in each round. Adding
    each payload once, as after `error_feedback`, would be wrong.

    Laws: the estimate is the sum of what accepted payloads say, up to a float32 rounding each. With an inner encoder
    that contracts, |said - asked|^2 <= (1 - a) |asked|^2 (top-k: a = k / n), the estimate contracts toward the
    update: |update - estimate'|^2 <= (1 - a) |update - estimate|^2.

    A payload that has no verdict when the next update is encoded counts as accepted. If `encode` raises, the state is
    as it was.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> from fedpress.compression.encoders import encoder, selection
    >>> from fedpress.compression.wire import values
    >>> shared = SideInfo(Layout((TensorSpec("weight", (3,), "float32"),)))
    >>> feedback = ef21(encoder.sparse(selection.top_k(k=1), values.FLOAT32))
    >>> state = feedback.init(shared.layout)
    >>> for _ in range(3):  # the same update three times: the estimate gets there
    ...     payload, state = feedback.encode(np.array([3, 1, 2], np.float32), state, shared, 0)
    ...     print(payloads.decode(payload, shared).dense().tolist())
    [3.0, 0.0, 0.0]
    [0.0, 0.0, 2.0]
    [0.0, 1.0, 0.0]
    """

    def init(layout: Layout) -> Estimate[S]:
        return Estimate(inner.init(layout), np.zeros(layout.size, np.float32), *nothing())

    def encode(update: Vector, state: Estimate[S], shared: SideInfo, seed: int) -> tuple[bytes, Estimate[S]]:
        layout.check(update, shared.layout)
        pending = remembered(state.sent_positions, state.sent_values, len(state.estimate))
        asked = update if update.flags.writeable else update.copy()
        with np.errstate(over="ignore", invalid="ignore"):  # the inner encoder refuses what is not finite
            asked -= state.estimate
            pending.add_to(asked, -1.0)
        payload, inner_state = inner.encode(asked, state.inner, shared, seed)
        pending.add_to(state.estimate)
        said = payloads.decode(payload, shared)
        positions = said.positions if isinstance(said, Sparse) else nothing()[0]
        return payload, Estimate(inner_state, state.estimate, positions, said.values)

    def start(state: Estimate[S]) -> Vector | None:
        return inner.start(state.inner)

    def settle(state: Estimate[S], accepted: bool) -> Estimate[S]:
        if accepted:
            remembered(state.sent_positions, state.sent_values, len(state.estimate)).add_to(state.estimate)
        return Estimate(inner.settle(state.inner, accepted), state.estimate, *nothing())

    def follow(state: Estimate[S], move: MaskChange) -> tuple[Estimate[S], Vector]:
        inner_state, lost = inner.follow(state.inner, move)
        return Estimate(inner_state, move.new(state.estimate), *nothing()), lost

    return Encoder(init, encode, start, settle, follow)
