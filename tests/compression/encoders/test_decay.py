"""Decay and age cap: what is dropped is counted, entry by entry, and nothing else is."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.encoders import decay, encoder, error_feedback, selection
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import values
from fedpress.compression.wire.values import ValueFormat

N = 20
LAYOUT = Layout((TensorSpec("weight", (N,), "float32"),))
ROUNDING = 2.0**-24
FORMATS = [values.by_name(name) for name in values.names()]


def shared_at(round: int) -> SideInfo:
    return SideInfo(LAYOUT, round=round)


def update_of(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(N).astype(np.float32)


def fading(format: ValueFormat, **options: Any) -> encoder.Encoder[decay.Decayed[None]]:
    return decay.decayed(error_feedback.error_feedback(encoder.sparse(selection.top_k(0.2), format)), **options)


@pytest.mark.parametrize("format", FORMATS, ids=values.names())
@given(
    options=st.sampled_from([{"factor": 0.5}, {"max_age": 2}, {"factor": 0.9, "max_age": 3}]),
    rounds=st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from(["accepted", "refused", "no verdict"])), min_size=1, max_size=10
    ),
    seed=st.integers(0),
)
def test_law_of_what_is_discarded(
    format: ValueFormat, options: dict[str, Any], rounds: list[tuple[int, str]], seed: int
) -> None:
    """accepted + residual + discarded == sum of the updates."""
    chosen = fading(format, **options)
    state = chosen.init(LAYOUT)
    terms: list[Vector] = []
    bound, round = np.zeros(N), 0
    for pause, verdict in rounds:
        round += pause
        update = update_of(seed + round)
        terms.append(-update)
        before, discarded = state.inner.residual.copy(), state.discarded.copy()
        payload, _, state = chosen.encode(update.copy(), state, shared_at(round), seed)
        asked = np.abs(update) + np.abs(before)
        bound += ROUNDING * (2 * asked + np.abs(state.inner.residual) + np.abs(state.discarded) + np.abs(discarded))
        if verdict == "refused":
            state = chosen.acknowledge(chosen.acknowledge(state, False), False)
            bound += ROUNDING * np.abs(state.inner.residual)
        else:
            terms.append(encoder.decode(payload, shared_at(round)).dense())
            if verdict == "accepted":
                state = chosen.acknowledge(chosen.acknowledge(state, True), False)
    terms += [state.inner.residual, state.discarded]
    for entry in range(N):
        assert abs(math.fsum(float(term[entry]) for term in terms)) <= bound[entry] * (1 + 1e-6)


def one_left(state: decay.Decayed[None]) -> float:
    return float(state.inner.residual[1])


def test_decay_goes_by_the_rounds_that_have_passed() -> None:
    chosen = fading(values.FLOAT32, factor=0.5)
    update = np.zeros(N, np.float32)
    update[:5] = 9, 1, 9, 9, 9
    *_, state = chosen.encode(update, chosen.init(LAYOUT), shared_at(7), 0)
    assert one_left(state) == 1  # nothing decays before the first payload
    update = np.where(np.isin(np.arange(N), (0, 2, 3, 4)), 9, 0).astype(np.float32)
    *_, state = chosen.encode(update, state, shared_at(10), 0)
    assert one_left(state) == 0.125 and state.discarded[1] == 0.875


def test_an_entry_that_waits_too_long_is_dropped_and_begins_anew() -> None:
    chosen = fading(values.FLOAT32, max_age=2)
    update = np.where(np.isin(np.arange(N), (0, 2, 3, 4)), 9, 0).astype(np.float32)
    update[1] = 1
    state = chosen.init(LAYOUT)
    left = []
    for round in range(5):
        *_, state = chosen.encode(update.copy(), state, shared_at(round), 0)
        left.append(one_left(state))
    assert left == [1, 2, 3, 1, 2] and state.discarded[1] == 3
    assert not np.delete(state.discarded, 1).any()


def test_waiting_begins_when_the_residual_does() -> None:
    chosen = fading(values.FLOAT32, max_age=2)
    state = chosen.init(LAYOUT)
    for round in range(4, 8):
        update = np.where(np.isin(np.arange(N), (0, 2, 3, 4)), 9, 0).astype(np.float32)
        update[1] = round == 6
        *_, state = chosen.encode(update, state, shared_at(round), 0)
    assert one_left(state) == 1 and not state.discarded.any()


@pytest.mark.parametrize("accepted", [True, False])
def test_a_refused_entry_keeps_its_age(accepted: bool) -> None:
    chosen = decay.decayed(error_feedback.error_feedback(encoder.dense(values.TERNARY)), max_age=2)
    update = np.arange(N, dtype=np.float32)
    *_, state = chosen.encode(update.copy(), chosen.init(LAYOUT), shared_at(0), 0)
    state = chosen.acknowledge(state, True)
    *_, state = chosen.encode(update.copy(), state, shared_at(2), 0)
    state = chosen.acknowledge(state, accepted)
    *_, state = chosen.encode(update.copy(), state, shared_at(3), 0)
    assert state.discarded.any() != accepted


def test_a_refusal_to_encode_changes_nothing() -> None:
    chosen = fading(values.FLOAT16, factor=0.5, max_age=1)
    *_, state = chosen.encode(update_of(1), chosen.init(LAYOUT), shared_at(0), 0)

    def leaves() -> list[bytes]:
        return [leaf.tobytes() for leaf in (*state[1:], *state.inner[1:])]

    before = leaves()
    with pytest.raises(errors.NonFiniteError):
        chosen.encode(np.full(N, np.nan, np.float32), state, shared_at(9), 0)
    assert leaves() == before


def test_step_ahead_inside_is_asked_for_the_start() -> None:
    ahead = error_feedback.step_ahead(
        error_feedback.error_feedback(encoder.sparse(selection.top_k(k=1), values.FLOAT32))
    )
    chosen = decay.decayed(ahead, 0.5)
    *_, state = chosen.encode(update_of(1), chosen.init(LAYOUT), shared_at(0), 0)
    np.testing.assert_array_equal(chosen.offset(state), state.inner.residual)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factor": 0.0}, "factor is 0.0, expected 0 < factor <= 1"),
        ({"factor": 1.1}, "factor is 1.1"),
        ({"max_age": 0}, "max_age is 0, expected at least 1 round"),
        ({}, "nothing would ever be dropped"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fading(values.FLOAT32, **options)


def test_an_encoder_without_a_residual_is_named() -> None:
    with pytest.raises(TypeError, match=r"state is NoneType; did you mean decayed\(error_feedback"):
        decay.decayed(encoder.dense(), 0.5).init(LAYOUT)  # type: ignore[arg-type]
