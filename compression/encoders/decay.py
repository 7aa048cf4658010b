"""Residuals that fade: old mass is dropped on purpose, and what is dropped is counted.

A client that takes part rarely sends a residual that was measured on much older models; with m of n clients a round
this slows error feedback by up to n / m.

Wu, Huang, Huang and Zhang 2018, "Error Compensated Quantized SGD and its Applications to Large-scale Distributed
Optimization", International Conference on Machine Learning (ICML), section 3: the accumulated error decays. Li and Li
2023, "Analysis of Error Feedback in Federated Non-Convex Optimization with Biased Compression: Fast Convergence and
Partial Participation", International Conference on Machine Learning (ICML): what stale residuals cost.
"""

from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.encoders.encoder import Encoded, Encoder, summed
from fedpress.compression.encoders.error_feedback import Residual, first_residual
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.mask import MaskChange
from fedpress.compression.tensors.side_info import SideInfo

S = TypeVar("S")


class Decayed(NamedTuple, Generic[S]):
    """The state of `decayed`."""

    inner: Residual[S]
    discarded: Vector  # (n,): the sum of what was dropped
    since: NDArray[np.int64]  # (n,): round since which an entry's residual has waited; (0,) without an age cap
    round: NDArray[np.int64]  # (1,): of the last payload, -1 before the first


def decayed(inner: Encoder[Residual[S]], factor: float = 1.0, *, max_age: int | None = None) -> Encoder[Decayed[S]]:
    """Multiply the residual by `factor` for each round that has passed, and drop what has waited too long.

    Both count `SideInfo.round`, the rounds of the whole federation, not the participations of this client. The age of
    an entry counts from the round in which its residual began to grow, or from when it was last sent.

    Law: accepted + residual + discarded == sum of the updates, entry by entry, up to the float32 roundings of
    `error_feedback` and one each of what is dropped and of its sum.

    Args:
        inner: An encoder whose state is a `Residual`: `error_feedback(...)`, or `step_ahead` around it.
        factor: What is left of the residual after a round, 0 < factor <= 1; 1 for no decay.
        max_age: Rounds that an entry may wait; those that wait longer are dropped. None for no cap.

    Raises:
        ValueError: The factor or the age is out of range, or neither does anything.
        TypeError: From `init`: the inner encoder has no residual.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> from fedpress.compression.encoders import encoder, error_feedback, selection
    >>> from fedpress.compression.wire import values
    >>> layout = Layout((TensorSpec("weight", (2,), "float32"),))
    >>> fading = decayed(error_feedback.error_feedback(encoder.sparse(selection.top_k(k=1), values.FLOAT32)), 0.5)
    >>> state = fading.encode(np.array([9, 4], np.float32), fading.init(layout), SideInfo(layout, round=0), 0).state
    >>> state = fading.encode(np.array([9, 0], np.float32), state, SideInfo(layout, round=2), 0).state
    >>> state.inner.residual.tolist(), state.discarded.tolist()
    ([0.0, 1.0], [0.0, 3.0])
    """
    if not 0 < factor <= 1:
        raise ValueError(f"factor is {factor}, expected 0 < factor <= 1: the part of the residual left after a round")
    if max_age is not None and max_age < 1:
        raise ValueError(f"max_age is {max_age}, expected at least 1 round, or None for no cap")
    if factor == 1 and max_age is None:
        raise ValueError("factor is 1 and max_age is None, so nothing would ever be dropped; give one of them")

    def init(layout: Layout) -> Decayed[S]:
        state = first_residual(inner, layout, "decayed")
        waited = np.zeros(0 if max_age is None else layout.size, np.int64)
        return Decayed(state, np.zeros(layout.size, np.float32), waited, np.full(1, -1))

    def encode(
        update: Vector, state: Decayed[S], side_info: SideInfo, seed: int, addend: Vector | None = None
    ) -> Encoded[Decayed[S]]:
        update = summed(update, addend, side_info.layout)
        old = state.inner.residual
        last = int(state.round[0])
        passed = max(0, side_info.round - last) if last >= 0 else 0
        faded = np.float32(factor**passed) * old  # a new vector: if the inner encoder raises, nothing has changed
        since = state.since
        if max_age is not None:
            since = _sent(state)
            since[old == 0] = side_info.round
            late = side_info.round - since > max_age
            faded[late] = 0
            since[late] = side_info.round
        dropped = old - faded
        inner_state = state.inner._replace(residual=faded)
        payload, decoded, inner_state = inner.encode(update, inner_state, side_info, seed)
        np.add(state.discarded, dropped, out=state.discarded)
        return Encoded(payload, decoded, Decayed(inner_state, state.discarded, since, np.full(1, side_info.round)))

    def offset(state: Decayed[S]) -> Vector | None:
        return inner.offset(state.inner)

    def acknowledge(state: Decayed[S], accepted: bool) -> Decayed[S]:
        since = _sent(state) if accepted else state.since
        return state._replace(inner=inner.acknowledge(state.inner, accepted), since=since)

    def remap(state: Decayed[S], change: MaskChange) -> tuple[Decayed[S], Vector]:
        inner_state, dropped = inner.remap(state.inner, change)
        since = change.apply(state.since, state.round[0]) if len(state.since) else state.since
        dropped = dropped + state.discarded[change.removed]
        return Decayed(inner_state, change.apply(state.discarded), since, state.round), dropped

    return Encoder(init, encode, offset, acknowledge, remap)


def _sent(state: Decayed[S]) -> NDArray[np.int64]:
    """Return the round since which each entry waits, if the last payload was accepted: a new array."""
    since = state.since.copy()
    if len(since) and len(state.inner.sent_values) == len(since):
        since[:] = state.round[0]
    elif len(since):
        since[state.inner.sent_positions] = state.round[0]
    return since
