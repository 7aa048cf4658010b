"""Feedback: nothing of the updates is lost, whatever the format, the data and the verdicts."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.encoders import encoder, error_feedback, selection, wrappers
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.encoders.error_feedback import Residual
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import values
from fedpress.compression.wire.values import ValueFormat

ROUNDING = 2.0**-24  # of one float32 operation, relative
N = 40
LAYOUT = Layout((TensorSpec("a", (5, 5), "float32"), TensorSpec("b", (), "float32"), TensorSpec("c", (14,), "float32")))
FORMATS = [values.by_name(name) for name in values.names()]
every_format = pytest.mark.parametrize("format", FORMATS, ids=values.names())


def shared_at(round: int) -> SideInfo:
    return SideInfo(LAYOUT, round=round, shared_positions=np.arange(round % 2, N, 4))


# What is wrapped: makes an encoder with a residual from a value format.
WRAPPED: dict[str, Callable[[ValueFormat], Encoder[Residual[None]]]] = {
    "top_k": lambda format: error_feedback.error_feedback(encoder.sparse(selection.top_k(0.1), format)),
    "top_k by layer": lambda format: error_feedback.error_feedback(
        encoder.sparse(selection.top_k(k=2, scope="layer"), format)
    ),
    "random_k": lambda format: error_feedback.error_feedback(encoder.seeded(0.3, format)),
    "correlated": lambda format: error_feedback.error_feedback(encoder.sparse(selection.correlated(0.3, 0.5), format)),
    "threshold": lambda format: error_feedback.error_feedback(encoder.sparse(selection.threshold(1.0), format)),
    "everything": lambda format: error_feedback.error_feedback(encoder.sparse(selection.top_k(1.0), format)),
    "dense": lambda format: error_feedback.error_feedback(encoder.dense(format)),
    "clipped inside": lambda format: error_feedback.error_feedback(
        wrappers.clipped(encoder.sparse(selection.top_k(0.1), format), 2.0)
    ),
    "step ahead": lambda format: error_feedback.step_ahead(
        error_feedback.error_feedback(encoder.sparse(selection.top_k(0.1), format)), 0.5
    ),
    "warmed up": lambda format: wrappers.warmed_up(
        lambda density: error_feedback.error_feedback(encoder.sparse(selection.top_k(density), format)), 0.8, 0.05, 3
    ),
}


@st.composite
def drawn_updates(draw: st.DrawFn) -> Vector:
    """An update of one kind: zeros, ties, normal values, or values of every size (sums stay finite)."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["zeros", "equal", "ties", "normal", "every size", "subnormal", "one"]))
    made: Any = {
        "zeros": lambda: np.zeros(N),
        "equal": lambda: np.full(N, -0.3),
        "ties": lambda: random.integers(-2, 3, N),
        "normal": lambda: random.standard_normal(N),
        "every size": lambda: random.standard_normal(N) * 10 ** random.uniform(-44, 36, N),
        "subnormal": lambda: random.integers(-9, 10, N) * 2.0**-149,
        "one": lambda: np.where(np.arange(N) == random.integers(N), 7.7, 0),
    }[kind]()
    return np.asarray(made).astype(np.float32)


ROUNDS = st.lists(
    st.tuples(drawn_updates(), st.sampled_from(["accepted", "refused", "refused twice", "no verdict", "not finite"])),
    min_size=1,
    max_size=8,
)


def leaves(state: Residual[None]) -> list[bytes]:
    return [leaf.tobytes() for leaf in (state.residual, state.sent_positions, state.sent_values)]


@pytest.mark.parametrize("name", WRAPPED)
@every_format
@settings(max_examples=10)
@given(rounds=ROUNDS)
def test_law_of_error_feedback(name: str, format: ValueFormat, rounds: list[tuple[Vector, str]]) -> None:
    """sum(accepted decoded) + residual == sum(updates), to the bound that the docstring promises, entry by entry."""
    chosen = WRAPPED[name](format)
    state = chosen.init(LAYOUT)
    accepted: list[Vector] = []
    updates: list[Vector] = []
    bound = np.zeros(N)
    for round, (update, verdict) in enumerate(rounds):
        shared = shared_at(round)
        if verdict == "not finite":
            before = leaves(state)
            broken = update.copy()
            broken[round % N] = (np.nan, np.inf, -np.inf)[round % 3]
            with pytest.raises(errors.NonFiniteError):
                chosen.encode(broken, state, shared, round)
            assert leaves(state) == before
            continue
        updates.append(update)
        asked = update + state.residual
        payload, _, state = chosen.encode(update.copy(), state, shared, round)
        bound += ROUNDING * (np.abs(asked) + np.abs(state.residual))
        if verdict.startswith("refused"):
            for _ in verdict.split():  # the second time must change nothing
                state = chosen.acknowledge(state, False)
            bound += ROUNDING * np.abs(state.residual)
        else:
            accepted.append(encoder.decode(payload, shared).dense())
            if verdict == "accepted":
                state = chosen.acknowledge(chosen.acknowledge(state, True), False)
    for entry in range(N):
        sides = [float(v[entry]) for v in (*accepted, state.residual)] + [-float(v[entry]) for v in updates]
        assert abs(math.fsum(sides)) <= bound[entry] * (1 + 1e-6)


@every_format
@given(update=drawn_updates())
def test_the_residual_is_never_longer_than_what_was_asked(format: ValueFormat, update: Vector) -> None:
    for name in ("top_k", "random_k", "everything"):
        chosen = WRAPPED[name](format)
        *_, state = chosen.encode(update.copy(), chosen.init(LAYOUT), shared_at(0), 0)
        asked = np.linalg.norm(update.astype(np.float64))
        assert np.linalg.norm(state.residual.astype(np.float64)) <= asked * (1 + 1e-6)


def test_what_is_sent_as_float32_leaves_nothing() -> None:
    chosen = WRAPPED["everything"](values.FLOAT32)
    update = np.random.default_rng(1).standard_normal(N).astype(np.float32)
    *_, state = chosen.encode(update, chosen.init(LAYOUT), shared_at(0), 0)
    assert not state.residual.any()


def test_every_entry_is_sent_in_time() -> None:
    """Without feedback the small entries would wait for ever."""
    chosen = WRAPPED["top_k"](values.TERNARY)
    update = np.linspace(0.5, 1, N).astype(np.float32)
    state, total = chosen.init(LAYOUT), np.zeros(N)
    for round in range(400):
        payload, _, state = chosen.encode(update.copy(), state, shared_at(round), round)
        encoder.decode(payload, shared_at(round)).add_to(total)
        state = chosen.acknowledge(state, True)
    np.testing.assert_allclose(total / 400, update, rtol=0.1)


@pytest.mark.parametrize("name", ["top_k", "dense"])
def test_settling_gives_back_once_and_only_what_was_refused(name: str) -> None:
    chosen = WRAPPED[name](values.TERNARY)
    update = np.random.default_rng(1).standard_normal(N).astype(np.float32)
    payload, _, state = chosen.encode(update.copy(), chosen.init(LAYOUT), shared_at(0), 0)
    kept = state.residual.copy()
    said = encoder.decode(payload, shared_at(0)).dense()
    refused = chosen.acknowledge(state, False)
    np.testing.assert_array_equal(refused.residual, kept + said)
    np.testing.assert_allclose(refused.residual, update, rtol=1e-6, atol=1e-6)
    assert len(refused.sent_positions) == len(refused.sent_values) == 0
    again = refused.residual.copy()
    np.testing.assert_array_equal(chosen.acknowledge(refused, False).residual, again)


def test_the_state_survives_a_trip_through_its_leaves() -> None:
    """A store keeps the arrays; a state made from them again goes on with the same bytes."""
    chosen = WRAPPED["step ahead"](values.INT8)
    updates = [np.random.default_rng(seed).standard_normal(N).astype(np.float32) for seed in range(2)]
    *_, state = chosen.encode(updates[0].copy(), chosen.init(LAYOUT), shared_at(0), 0)
    copied = Residual(None, *(np.copy(leaf) for leaf in state[1:]))
    results = []
    for one in (state, copied):
        payload, _, after = chosen.encode(updates[1].copy(), chosen.acknowledge(one, False), shared_at(1), 0)
        results.append((payload, leaves(after)))
    assert results[0] == results[1]


def test_a_read_only_update_is_copied_and_a_writeable_one_becomes_the_residual() -> None:
    chosen = WRAPPED["top_k"](values.FLOAT32)
    update = np.ones(N, np.float32)
    update.flags.writeable = False
    *_, state = chosen.encode(update, chosen.init(LAYOUT), shared_at(0), 0)
    assert (update == 1).all() and not np.shares_memory(state.residual, update)
    donated = np.ones(N, np.float32)
    *_, state = chosen.encode(donated, chosen.init(LAYOUT), shared_at(0), 0)
    assert state.residual is donated


def test_a_sum_that_overflows_is_refused_and_the_residual_stays() -> None:
    chosen = WRAPPED["top_k"](values.FLOAT32)
    huge = np.full(N, np.finfo(np.float32).max, np.float32)
    *_, state = chosen.encode(huge.copy(), chosen.init(LAYOUT), shared_at(0), 0)
    before = leaves(state)
    with pytest.raises(errors.NonFiniteError):
        chosen.encode(huge.copy(), state, shared_at(1), 0)
    assert leaves(state) == before


# step_ahead


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0])
def test_training_starts_ahead_by_a_part_of_the_residual(factor: float) -> None:
    ahead = error_feedback.step_ahead(WRAPPED["top_k"](values.FLOAT32), factor)
    state = ahead.init(LAYOUT)
    assert ahead.offset(state) is None
    plain_payload, _, plain = WRAPPED["top_k"](values.FLOAT32).encode(
        np.arange(N, dtype=np.float32), WRAPPED["top_k"](values.FLOAT32).init(LAYOUT), shared_at(0), 0
    )
    payload, _, state = ahead.encode(np.arange(N, dtype=np.float32), state, shared_at(0), 0)
    assert payload == plain_payload and leaves(state) == leaves(plain)
    offset = ahead.offset(state)
    if factor:
        assert offset is not None and offset.dtype == np.float32
        assert not offset.flags.writeable or not np.shares_memory(offset, state.residual)
        np.testing.assert_array_equal(offset, np.float32(factor) * state.residual)
    else:
        assert offset is None


def test_step_ahead_counts_the_residual_once() -> None:
    """Two clients with the same gradients, one starts ahead: with update = trained - start both keep the law."""
    held, gradient = np.zeros(N, np.float32), np.linspace(-1, 1, N).astype(np.float32)
    for factor in (0.0, 1.0):
        ahead = error_feedback.step_ahead(WRAPPED["top_k"](values.FLOAT32), factor)
        state, said = ahead.init(LAYOUT), np.zeros(N)
        for round in range(5):
            offset = ahead.offset(state)
            start = held if offset is None else held + offset
            trained = start - gradient
            payload, _, state = ahead.encode(trained - start, state, shared_at(round), 0)
            encoder.decode(payload, shared_at(round)).add_to(said)
        np.testing.assert_allclose(said + state.residual, -5 * gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0])
def test_step_ahead_is_sa_pef_as_published(factor: float) -> None:
    """The paper encodes (trained - held) + (1 - factor) * residual: the same payloads, the same residual."""
    held, random = np.zeros(N, np.float32), np.random.default_rng(1)
    plain = encoder.sparse(selection.top_k(0.1), values.FLOAT32)
    ahead, published = error_feedback.step_ahead(error_feedback.error_feedback(plain), factor), np.zeros(N, np.float32)
    state = ahead.init(LAYOUT)
    for round in range(8):
        steps = random.standard_normal(N).astype(np.float32)
        offset = ahead.offset(state)
        ours, _, state = ahead.encode(steps.copy(), state, shared_at(round), 0)
        start = held + np.float32(factor) * published
        np.testing.assert_allclose(start, held if offset is None else held + offset, atol=1e-5)
        asked = (start + steps - held) + np.float32(1 - factor) * published
        theirs, *_ = plain.encode(asked, None, shared_at(round), 0)
        published = asked - encoder.decode(theirs, shared_at(round)).dense()
        one, other = (encoder.decode(payload, shared_at(round)).dense() for payload in (ours, theirs))
        np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(state.residual, published, atol=1e-5)


def test_step_ahead_of_an_encoder_without_a_residual_is_named() -> None:
    ahead = error_feedback.step_ahead(encoder.dense())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"state is NoneType; did you mean step_ahead\(error_feedback"):
        ahead.init(LAYOUT)


def test_a_factor_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match="factor is 1.5, expected 0 to 1"):
        error_feedback.step_ahead(WRAPPED["top_k"](values.FLOAT32), 1.5)
