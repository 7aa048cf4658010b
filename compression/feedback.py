"""Wrappers: an encoder in, an encoder out."""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors, vector, wire
from fedpress.compression.encoder import Encoder
from fedpress.compression.shared import Shared
from fedpress.compression.update import Dense, Sparse
from fedpress.compression.vector import Layout, Vector

S = TypeVar("S")


class Residual(NamedTuple, Generic[S]):
    """The state of `error_feedback`.

    `sent_positions` and `sent_values` say what the last payload said until its verdict comes, so that the mass of a
    refused payload can go back. A payload of all n entries leaves the positions empty.
    """

    inner: S
    residual: Vector  # (n,)
    sent_positions: NDArray[np.int64]  # (k,)
    sent_values: Vector  # (k,)


def error_feedback(inner: Encoder[S]) -> Encoder[Residual[S]]:
    """Keep back what a payload does not say, and add it to the next update.

    Law: the sum of what accepted payloads say + residual == the sum of the updates, but for float32 rounding: each
    round rounds once when the residual is added to the update and once when the sent values are taken off.

    Seide et al. 2014, "1-bit stochastic gradient descent", section 3; Stich et al. 2018, "Sparsified SGD with memory",
    algorithm 1. A payload that is not settled when the next one is encoded counts as accepted.
    """

    def init(layout: Layout) -> Residual[S]:
        return Residual(inner.init(layout), np.zeros(layout.size, np.float32), *_NOTHING_SENT)

    def encode(update: Vector, state: Residual[S], shared: Shared, seed: int) -> tuple[bytes, Residual[S]]:
        vector.check(update, shared.layout)
        asked = update if update.flags.writeable else update.copy()
        with np.errstate(over="ignore", invalid="ignore"):  # the inner encoder refuses what is not finite
            asked += state.residual
        reading = asked.view()
        reading.flags.writeable = False
        payload, inner_state = inner.encode(reading, state.inner, shared, seed)
        said = wire.decode(payload, shared)
        said.add_to(asked, -1.0)  # what was asked becomes the residual: no third vector
        positions = said.positions if isinstance(said, Sparse) else _NOTHING_SENT[0]
        return payload, Residual(inner_state, asked, positions, said.values)

    def settle(state: Residual[S], accepted: bool) -> Residual[S]:
        if not accepted:
            dense = len(state.sent_values) == len(state.residual)
            said = (
                Dense(state.sent_values)
                if dense
                else Sparse(state.sent_positions, state.sent_values, len(state.residual))
            )
            said.add_to(state.residual)
        return Residual(inner.settle(state.inner, accepted), state.residual, *_NOTHING_SENT)

    return Encoder(init, encode, lambda state: inner.start(state.inner), settle)


_NOTHING_SENT = (np.empty(0, np.int64), np.empty(0, np.float32))


def step_ahead(inner: Encoder[Residual[S]], factor: float = 1.0) -> Encoder[Residual[S]]:
    """Train from the held model + `factor` times the residual (SA-PEF), so that an old residual does less harm."""

    def init(layout: Layout) -> Residual[S]:
        state = inner.init(layout)
        if not isinstance(state, Residual):
            raise TypeError(
                f"step_ahead needs an encoder with a residual, got one with the state {type(state).__name__}; "
                "write step_ahead(error_feedback(...))"
            )
        return state

    def start(state: Residual[S]) -> Vector | None:
        return np.float32(factor) * state.residual if state.residual.any() else None

    return inner._replace(init=init, start=start)


def clipped(inner: Encoder[S], max_norm: float) -> Encoder[S]:
    """Scale an update down to the L2 norm `max_norm` if it is longer."""
    if not 0 < max_norm < np.inf:
        raise ValueError(f"max_norm is {max_norm}, expected a finite number above 0")

    def encode(update: Vector, state: S, shared: Shared, seed: int) -> tuple[bytes, S]:
        vector.check(update, shared.layout)
        norm = _norm(update)
        if not np.isfinite(norm):
            raise errors.NonFiniteError("the update holds NaN or infinity; did training diverge?")
        if norm > max_norm:
            update = np.multiply(update, np.float32(max_norm / norm), out=update if update.flags.writeable else None)
        return inner.encode(update, state, shared, seed)

    return inner._replace(encode=encode)


def warmed_up(make: Callable[[float], Encoder[S]], start: float, end: float, rounds: int) -> Encoder[S]:
    """Let the density fall exponentially from `start` to `end` over the first `rounds` rounds (by `shared.round`).

    Lin et al. 2018, "Deep Gradient Compression", section 3.3.
    """
    for density in (start, end):
        if not 0 < density <= 1:
            raise ValueError(f"density {density} is out of range; expected 0 < density <= 1")
    if rounds < 0:
        raise ValueError(f"rounds is {rounds}, expected at least 0")

    def encode(update: Vector, state: S, shared: Shared, seed: int) -> tuple[bytes, S]:
        part = min(1.0, shared.round / rounds) if rounds else 1.0
        return make(start * (end / start) ** part).encode(update, state, shared, seed)

    return make(end)._replace(encode=encode)


def _norm(update: Vector) -> float:
    total = 0.0
    for first in range(0, len(update), 1 << 16):
        block: NDArray[Any] = update[first : first + (1 << 16)].astype(np.float64)
        total += float(block @ block)
    return float(np.sqrt(total))
