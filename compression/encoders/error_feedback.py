"""Error feedback: what an encoder does not send is kept and added to the next update."""

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


class Residual(NamedTuple, Generic[S]):
    """The state of `error_feedback`.

    `sent_positions` and `sent_values` are what is decoded from the last payload, until its verdict comes: the mass of a
    refused payload goes back into the residual. A payload of all n entries has no positions.
    """

    inner: S
    residual: Vector  # (n,): what was to be encoded minus what is decoded
    sent_positions: NDArray[np.int64]  # (k,), or (0,)
    sent_values: Vector  # (k,)


def error_feedback(inner: Encoder[S]) -> Encoder[Residual[S]]:
    """Keep back what a payload leaves out, and add it to the next update.

    Law: sum of what accepted payloads decode to + residual == sum of the updates. Both sides are exact but for two
    roundings of float32 a round, in corrected = update + residual and in residual' = corrected - decoded, so that every
    entry of the two sides differs by at most 2^-24 (|corrected| + |residual'|) summed over the rounds; a refused
    payload adds one more, 2^-24 |residual''|, where residual'' = residual' + decoded. What is sent as float32 leaves a
    residual of exactly zero.

    A payload that has no verdict when the next update is encoded counts as accepted. If `encode` raises (NaN, infinity,
    also where update + residual overflows), the residual is as it was. When the mask of a sparse model changes, entries
    that survive keep their residual.

    Seide et al. 2014, "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed Training of
    Speech DNNs", section 3; Stich et al. 2018, "Sparsified SGD with Memory", algorithm 1.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> from fedpress.compression.encoders import encoder, selection
    >>> from fedpress.compression.wire import values
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (3,), "float32"),)))
    >>> feedback = error_feedback(encoder.sparse(selection.top_k(k=1), values.FLOAT32))
    >>> state = feedback.init(side_info.layout)
    >>> payload, decoded, state = feedback.encode(np.array([3, 1, 2], np.float32), state, side_info, 0)
    >>> decoded.dense().tolist(), state.residual.tolist()
    ([3.0, 0.0, 0.0], [0.0, 1.0, 2.0])
    >>> feedback.acknowledge(state, False).residual.tolist()
    [3.0, 1.0, 2.0]
    """

    def init(layout: Layout) -> Residual[S]:
        return Residual(inner.init(layout), np.zeros(layout.size, np.float32), *no_arrays())

    def encode(
        update: Vector, state: Residual[S], side_info: SideInfo, seed: int, addend: Vector | None = None
    ) -> Encoded[Residual[S]]:
        update = summed(update, addend, side_info.layout)
        corrected = layouts.writable(update)
        payload, decoded, inner_state = inner.encode(corrected, state.inner, side_info, seed, addend=state.residual)
        # What was encoded becomes the new residual: no third vector, and the old one is untouched until all went well.
        decoded.add_to(corrected, -1.0)
        return Encoded(payload, decoded, Residual(inner_state, corrected, *to_arrays(decoded)))

    def offset(state: Residual[S]) -> Vector | None:
        return inner.offset(state.inner)

    def acknowledge(state: Residual[S], accepted: bool) -> Residual[S]:
        if not accepted:
            from_arrays(state.sent_positions, state.sent_values, len(state.residual)).add_to(state.residual)
        return Residual(inner.acknowledge(state.inner, accepted), state.residual, *no_arrays())

    def remap(state: Residual[S], change: MaskChange) -> tuple[Residual[S], Vector]:
        inner_state, dropped = inner.remap(state.inner, change)
        dropped = dropped + state.residual[change.removed]
        return Residual(inner_state, change.apply(state.residual), *no_arrays()), dropped

    return Encoder(init, encode, offset, acknowledge, remap)


def first_residual(inner: Encoder[Residual[S]], layout: Layout, wrapper: str) -> Residual[S]:
    """Return the first state of an encoder that a wrapper takes for one with a residual.

    Args:
        inner: The encoder.
        layout: The tensors of the vector.
        wrapper: Name of the wrapper, for the error.

    Raises:
        TypeError: The encoder's state is not a `Residual`.
    """
    state = inner.init(layout)
    if not isinstance(state, Residual):
        raise TypeError(
            f"{wrapper} needs an encoder that keeps a residual, this one's state is {type(state).__name__}; "
            f"did you mean {wrapper}(error_feedback(...))?"
        )
    return state


def step_ahead(inner: Encoder[Residual[S]], factor: float = 1.0) -> Encoder[Residual[S]]:
    """Train from the held model + `factor` times the residual; what is encoded stays the same.

    The gradients are then taken where the model will be once the residual has been sent, which keeps an old residual
    from undoing newer steps. The update is measured from that start (trained - start), so that the residual counts
    once.

    This is SA-PEF, its partial carry included: the paper measures trained - held, which holds factor * residual
    already, and adds the remaining (1 - factor) * residual. The sum is the same, so the law of `error_feedback` stays,
    and nothing is discarded whatever the factor.

    Redie, Arablouei and Werner 2026, "SA-PEF: Step-Ahead Partial Error Feedback for Efficient Federated Learning".

    Args:
        inner: An encoder whose state is a `Residual`: `error_feedback(...)`, or a wrapper around it.
        factor: The step-ahead coefficient, 0 (plain error feedback) to 1 (the whole residual).

    Raises:
        ValueError: The factor is outside [0, 1].
        TypeError: From `init`: the inner encoder has no residual.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> from fedpress.compression.encoders import encoder, selection
    >>> from fedpress.compression.wire import values
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (3,), "float32"),)))
    >>> ahead = step_ahead(error_feedback(encoder.sparse(selection.top_k(k=1), values.FLOAT32)), 0.5)
    >>> *_, state = ahead.encode(np.array([3, 1, 2], np.float32), ahead.init(side_info.layout), side_info, 0)
    >>> ahead.offset(state)
    array([0. , 0.5, 1. ], dtype=float32)
    """
    if not 0 <= factor <= 1:
        raise ValueError(f"factor is {factor}, expected 0 to 1: the part of the residual that training starts ahead by")

    def init(layout: Layout) -> Residual[S]:
        return first_residual(inner, layout, "step_ahead")

    def offset(state: Residual[S]) -> Vector | None:
        if not factor or not state.residual.any():
            return None
        return layouts.read_only(state.residual) if factor == 1 else np.float32(factor) * state.residual

    return inner._replace(init=init, offset=offset)
