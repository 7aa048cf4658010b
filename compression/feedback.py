"""Wrappers that change what an encoder is asked to send: an encoder in, an encoder out."""

import math
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors, vector, wire
from fedpress.compression.encoder import Encoder, SparseEncode
from fedpress.compression.mask import Move
from fedpress.compression.shared import Shared
from fedpress.compression.update import Sparse, nothing, remembered
from fedpress.compression.vector import BLOCK, Layout, Vector

S = TypeVar("S")


class Residual(NamedTuple, Generic[S]):
    """The state of `error_feedback`.

    `sent_positions` and `sent_values` are what the last payload says, until its verdict comes: the mass of a refused
    payload goes back into the residual. A payload of all n entries has no positions.
    """

    inner: S
    residual: Vector  # (n,): asked minus sent
    sent_positions: NDArray[np.int64]  # (k,), or (0,)
    sent_values: Vector  # (k,)


def error_feedback(inner: Encoder[S]) -> Encoder[Residual[S]]:
    """Keep back what a payload does not say, and add it to the next update.

    Law: sum of what accepted payloads say + residual == sum of the updates. Both sides are exact but for two roundings
    of float32 a round, in asked = update + residual and in residual' = asked - said, so that every entry of the two
    sides differs by at most 2^-24 (|asked| + |residual'|) summed over the rounds; a refused payload adds one more,
    2^-24 |residual''|, where residual'' = residual' + said. What is sent as float32 leaves a residual of exactly zero.

    A payload that has no verdict when the next update is encoded counts as accepted. If `encode` raises (NaN, infinity,
    also where update + residual overflows), the residual is as it was. When the mask of a sparse model changes, entries
    that survive keep their residual.

    Seide et al. 2014, "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed Training of
    Speech DNNs", section 3; Stich et al. 2018, "Sparsified SGD with Memory", algorithm 1.

    >>> from fedpress.compression import encoder, selection, values
    >>> shared = Shared(Layout((vector.TensorSpec("weight", (3,), "float32"),)))
    >>> feedback = error_feedback(encoder.sparse(selection.top_k(k=1), values.FLOAT32))
    >>> payload, state = feedback.encode(np.array([3, 1, 2], np.float32), feedback.init(shared.layout), shared, 0)
    >>> encoder.decode(payload, shared).dense().tolist(), state.residual.tolist()
    ([3.0, 0.0, 0.0], [0.0, 1.0, 2.0])
    >>> feedback.settle(state, False).residual.tolist()
    [3.0, 1.0, 2.0]
    """

    def init(layout: Layout) -> Residual[S]:
        return Residual(inner.init(layout), np.zeros(layout.size, np.float32), *nothing())

    def encode(update: Vector, state: Residual[S], shared: Shared, seed: int) -> tuple[bytes, Residual[S]]:
        vector.check(update, shared.layout)
        asked = update if update.flags.writeable else update.copy()
        if isinstance(inner.encode, SparseEncode):  # the same in one pass; its state is None
            payload, sent = inner.encode.of_sum(asked, state.residual, shared, seed)
            if sent.count == sent.size:
                sent = sent._replace(positions=nothing()[0])
            return payload, Residual(state.inner, asked, sent.positions, sent.values)
        with np.errstate(over="ignore", invalid="ignore"):  # the inner encoder refuses what is not finite
            asked += state.residual
        payload, inner_state = inner.encode(vector.read_only(asked), state.inner, shared, seed)
        said = wire.decode(payload, shared)
        # What was asked becomes the new residual: no third vector, and the old one is untouched until all went well.
        said.add_to(asked, -1.0)
        positions = said.positions if isinstance(said, Sparse) else nothing()[0]
        return payload, Residual(inner_state, asked, positions, said.values)

    def start(state: Residual[S]) -> Vector | None:
        return inner.start(state.inner)

    def settle(state: Residual[S], accepted: bool) -> Residual[S]:
        if not accepted:
            remembered(state.sent_positions, state.sent_values, len(state.residual)).add_to(state.residual)
        return Residual(inner.settle(state.inner, accepted), state.residual, *nothing())

    def follow(state: Residual[S], move: Move) -> tuple[Residual[S], Vector]:
        inner_state, lost = inner.follow(state.inner, move)
        fallen = state.residual[move.fallen]
        return Residual(inner_state, move.new(state.residual), *nothing()), fallen + lost

    return Encoder(init, encode, start, settle, follow)


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

    >>> from fedpress.compression import encoder, selection, values
    >>> shared = Shared(Layout((vector.TensorSpec("weight", (3,), "float32"),)))
    >>> ahead = step_ahead(error_feedback(encoder.sparse(selection.top_k(k=1), values.FLOAT32)), 0.5)
    >>> _, state = ahead.encode(np.array([3, 1, 2], np.float32), ahead.init(shared.layout), shared, 0)
    >>> ahead.start(state)
    array([0. , 0.5, 1. ], dtype=float32)
    """
    if not 0 <= factor <= 1:
        raise ValueError(f"factor is {factor}, expected 0 to 1: the part of the residual that training starts ahead by")

    def init(layout: Layout) -> Residual[S]:
        state = inner.init(layout)
        if not isinstance(state, Residual):
            raise TypeError(
                f"step_ahead needs an encoder that keeps a residual, this one's state is {type(state).__name__}; "
                "did you mean step_ahead(error_feedback(...))?"
            )
        return state

    def start(state: Residual[S]) -> Vector | None:
        return np.float32(factor) * state.residual if factor and state.residual.any() else None

    return inner._replace(init=init, start=start)


def clipped(inner: Encoder[S], max_norm: float) -> Encoder[S]:
    """Scale an update that is longer than `max_norm` (L2) down to it.

    Around `error_feedback` it bounds what one round of training adds, and what is cut off is lost on purpose; inside
    it bounds what is sent, and what is cut off stays in the residual.

    Args:
        inner: The encoder of the clipped update.
        max_norm: Greatest L2 norm of the whole update, finite and above 0.

    Raises:
        ValueError: The norm is out of range.

    >>> from fedpress.compression import encoder
    >>> shared = Shared(Layout((vector.TensorSpec("weight", (2,), "float32"),)))
    >>> payload, _ = clipped(encoder.dense(), 2.5).encode(np.array([3, -4], np.float32), None, shared, 0)
    >>> encoder.decode(payload, shared).dense().tolist()
    [1.5, -2.0]
    """
    if not 0 < max_norm < np.inf:
        raise ValueError(f"max_norm is {max_norm}, expected a finite number above 0")

    def encode(update: Vector, state: S, shared: Shared, seed: int) -> tuple[bytes, S]:
        vector.check(update, shared.layout)
        norm = _norm(update)
        if not np.isfinite(norm):
            raise errors.NonFiniteError("the update holds NaN or infinity, so it has no norm; did training diverge?")
        if norm > max_norm:
            update = np.multiply(update, np.float32(max_norm / norm), out=update if update.flags.writeable else None)
        return inner.encode(update, state, shared, seed)

    return inner._replace(encode=encode)


def warmed_up(make: Callable[[float], Encoder[S]], start: float, end: float, rounds: int) -> Encoder[S]:
    """Let the density go from `start` to `end` exponentially over the first `rounds` rounds.

    In round r of `Shared.round` it is start * (end / start)^(r / rounds), from round `rounds` on it is `end`.

    Lin et al. 2018, "Deep Gradient Compression", section 3.3.

    Args:
        make: density -> encoder; its state must not depend on the density.
        start: Density in round 0, 0 < start <= 1.
        end: Density after the warm-up, 0 < end <= 1.
        rounds: Length of the warm-up; 0 for none.

    Raises:
        ValueError: A density or the number of rounds is out of range.

    >>> from fedpress.compression import encoder, selection, values
    >>> layout = Layout((vector.TensorSpec("weight", (100,), "float32"),))
    >>> warm = warmed_up(lambda density: encoder.sparse(selection.top_k(density), values.TERNARY), 1, 0.01, 2)
    >>> for round in range(4):
    ...     payload, _ = warm.encode(np.ones(100, np.float32), None, Shared(layout, round), 0)
    ...     print(wire.inspect(payload)["count"])
    100
    10
    1
    1
    """
    for density in (start, end):
        if not 0 < density <= 1:
            raise ValueError(f"density {density} is out of range; expected 0 < density <= 1, such as 0.01 for 1 %")
    if rounds < 0:
        raise ValueError(f"rounds is {rounds}, expected at least 0")

    def encode(update: Vector, state: S, shared: Shared, seed: int) -> tuple[bytes, S]:
        done = shared.round >= rounds
        density = end if done else start * (end / start) ** (shared.round / rounds)
        return make(density).encode(update, state, shared, seed)

    return make(end)._replace(encode=encode)


def _norm(update: Vector) -> float:
    """Return the L2 norm, summed in float64 by blocks: float32 squares overflow above 2^64."""
    total = 0.0
    for first in range(0, len(update), BLOCK):
        block = update[first : first + BLOCK].astype(np.float64)
        total += float(block @ block)
    return math.sqrt(total)
