"""Momentum correction: velocities are accumulated by the law, and masked where they were sent."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.encoders import encoder, error_feedback, momentum, selection
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import values

N = 20
SHARED = SideInfo(Layout((TensorSpec("weight", (N,), "float32"),)))
VERDICTS = st.sampled_from(["accepted", "refused", "no verdict"])
INNER: dict[str, Encoder[Any]] = {
    "top_k": error_feedback.error_feedback(encoder.sparse(selection.top_k(0.2), values.FLOAT16)),
    "dense": error_feedback.error_feedback(encoder.dense(values.TERNARY)),
    "step ahead": error_feedback.step_ahead(
        error_feedback.error_feedback(encoder.sparse(selection.top_k(0.2), values.INT8))
    ),
}


def update_of(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(N).astype(np.float32)


@pytest.mark.parametrize("name", INNER)
@given(
    factor=st.sampled_from([0.0, 0.5, 0.9]), verdicts=st.lists(VERDICTS, min_size=1, max_size=12), seed=st.integers(0)
)
def test_law_of_momentum_correction(name: str, factor: float, verdicts: list[str], seed: int) -> None:
    """accepted + residual + m / (1 - m) (velocity + masked) == sum of the updates / (1 - m)."""
    chosen = momentum.momentum_corrected(INNER[name], factor)
    state = chosen.init(SHARED.layout)
    updates, accepted, masked = np.zeros(N), np.zeros(N), np.zeros(N)
    for round, verdict in enumerate(verdicts):
        update = update_of(seed + round)
        updates += update
        payload, _, state = chosen.encode(update, state, SHARED, round)
        if verdict == "refused":
            state = chosen.acknowledge(chosen.acknowledge(state, False), False)
        else:
            said = encoder.decode(payload, SHARED)
            said.add_to(accepted)
            positions = slice(None) if len(state.masked_values) == N else state.masked_positions
            masked[positions] += state.masked_values
            if verdict == "accepted":
                state = chosen.acknowledge(chosen.acknowledge(state, True), False)
    left = accepted + state.inner.residual + factor / (1 - factor) * (state.velocity + masked)
    np.testing.assert_allclose(left, updates / (1 - factor), rtol=1e-4, atol=1e-3)


def test_what_is_never_sent_adds_up_as_momentum_does() -> None:
    silent = error_feedback.error_feedback(encoder.sparse(selection.threshold(1e30), values.FLOAT32))
    chosen = momentum.momentum_corrected(silent, 0.9)
    state = chosen.init(SHARED.layout)
    velocity, total = np.zeros(N), np.zeros(N)
    for round in range(10):
        velocity = 0.9 * velocity + update_of(round)
        total += velocity
        *_, state = chosen.encode(update_of(round), state, SHARED, 0)
    np.testing.assert_allclose(state.velocity, velocity, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.inner.residual, total, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_what_is_always_sent_has_no_momentum(seed: int, rounds: int) -> None:
    plain = encoder.sparse(selection.top_k(1.0), values.FLOAT32)
    chosen = momentum.momentum_corrected(plain)
    state = chosen.init(SHARED.layout)
    for round in range(rounds):
        payload, _, state = chosen.encode(update_of(seed + round), state, SHARED, 0)
        assert payload == plain.encode(update_of(seed + round), None, SHARED, 0).payload
        assert not state.velocity.any()


def test_a_velocity_that_overflows_is_refused_and_the_state_stays() -> None:
    chosen = momentum.momentum_corrected(INNER["top_k"])
    huge = np.full(N, np.finfo(np.float32).max, np.float32)
    *_, state = chosen.encode(huge.copy(), chosen.init(SHARED.layout), SHARED, 0)
    before = [leaf.tobytes() for leaf in (state.velocity, state.inner.residual)]
    with pytest.raises(errors.NonFiniteError):
        chosen.encode(huge.copy(), state, SHARED, 0)
    assert [leaf.tobytes() for leaf in (state.velocity, state.inner.residual)] == before


def test_step_ahead_inside_is_asked_for_the_start() -> None:
    chosen = momentum.momentum_corrected(INNER["step ahead"])
    assert chosen.offset(chosen.init(SHARED.layout)) is None
    update = update_of(1)
    update.flags.writeable = False
    *_, state = chosen.encode(update, chosen.init(SHARED.layout), SHARED, 0)
    np.testing.assert_array_equal(chosen.offset(state), state.inner.residual)
    np.testing.assert_array_equal(update, update_of(1))


@pytest.mark.parametrize("factor", [-0.1, 1.0, float("nan")])
def test_a_momentum_out_of_range_is_named(factor: float) -> None:
    with pytest.raises(ValueError, match=r"momentum is .*, expected 0 <= momentum < 1"):
        momentum.momentum_corrected(INNER["dense"], factor)
