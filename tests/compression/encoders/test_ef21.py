"""EF21: the estimate is what was accepted, and it contracts toward the update."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.encoders import ef21, encoder, error_feedback, selection
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import values

N = 20
SHARED = SideInfo(Layout((TensorSpec("weight", (N,), "float32"),)))
INNER: dict[str, Encoder[Any]] = {
    "top_k": encoder.sparse(selection.top_k(0.2), values.FLOAT16),
    "random_k": encoder.seeded(0.2, values.FLOAT32),
    "dense": encoder.dense(values.TERNARY),
}


def update_of(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(N).astype(np.float32)


@pytest.mark.parametrize("name", INNER)
@given(
    verdicts=st.lists(st.sampled_from(["accepted", "refused", "no verdict"]), min_size=1, max_size=10),
    seed=st.integers(0),
)
def test_the_estimate_is_the_sum_of_what_was_accepted(name: str, verdicts: list[str], seed: int) -> None:
    chosen = ef21.ef21(INNER[name])
    state, total = chosen.init(SHARED.layout), np.zeros(N)
    for round, verdict in enumerate(verdicts):
        payload, _, state = chosen.encode(update_of(seed + round), state, SHARED, round)
        if verdict != "refused":
            encoder.decode(payload, SHARED).add_to(total)
        if verdict != "no verdict":
            for _ in range(2):
                state = chosen.acknowledge(state, verdict == "accepted")
    state = chosen.acknowledge(state, True)
    np.testing.assert_allclose(state.estimate, total, rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0), k=st.integers(1, N))
def test_the_estimate_contracts_towards_the_update(seed: int, k: int) -> None:
    chosen = ef21.ef21(encoder.sparse(selection.top_k(k=k), values.FLOAT32))
    state = chosen.init(SHARED.layout)
    for round in range(4):
        update = update_of(seed + round)
        before = np.sum((update - state.estimate).astype(np.float64) ** 2)
        *_, state = chosen.encode(update.copy(), state, SHARED, 0)
        state = chosen.acknowledge(state, True)
        after = np.sum((update - state.estimate).astype(np.float64) ** 2)
        assert after <= (1 - k / N) * before + 1e-9


def test_the_same_update_again_and_again_is_known_in_the_end() -> None:
    chosen = ef21.ef21(INNER["top_k"])
    state = chosen.init(SHARED.layout)
    update = update_of(1)
    update.flags.writeable = False
    for _ in range(12):
        *_, state = chosen.encode(update, state, SHARED, 0)
    np.testing.assert_allclose(chosen.acknowledge(state, True).estimate, update, atol=1e-6)


def test_a_refusal_to_encode_changes_nothing() -> None:
    chosen = ef21.ef21(INNER["top_k"])
    *_, state = chosen.encode(update_of(1), chosen.init(SHARED.layout), SHARED, 0)
    before = [leaf.tobytes() for leaf in state[1:]]
    with pytest.raises(errors.NonFiniteError):
        chosen.encode(np.full(N, np.inf, np.float32), state, SHARED, 0)
    assert [leaf.tobytes() for leaf in state[1:]] == before


def test_a_start_goes_through() -> None:
    ahead = error_feedback.step_ahead(error_feedback.error_feedback(INNER["top_k"]))
    chosen = ef21.ef21(ahead)
    *_, state = chosen.encode(update_of(1), chosen.init(SHARED.layout), SHARED, 0)
    np.testing.assert_array_equal(chosen.offset(state), state.inner.residual)
