"""CAFe: the predictor is taken out on one side and put back on the other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import cafe, encoder, errors, feedback, selection, values
from fedpress.compression.encoder import Encoder
from fedpress.compression.shared import Shared
from fedpress.compression.vector import Layout, TensorSpec, Vector

N = 20
LAYOUT = Layout((TensorSpec("weight", (N,), "float32"),))


def draw(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(N).astype(np.float32)


def mean_of(chosen: Encoder[None], updates: list[Vector], shared: Shared) -> Vector:
    total = np.zeros(N)
    for seed, update in enumerate(updates):
        payload, _ = chosen.encode(update.copy(), None, shared, seed)
        encoder.decode(payload, shared).add_to(total)
    return cafe.restored((total / len(updates)).astype(np.float32), shared)


@given(seed=st.integers(0), clients=st.integers(1, 5), predicted=st.booleans())
def test_without_loss_the_mean_of_the_updates_comes_back(seed: int, clients: int, predicted: bool) -> None:
    updates = [draw(seed + client) for client in range(clients)]
    shared = Shared(LAYOUT, predictor=draw(seed + 99) if predicted else None)
    mean = mean_of(cafe.aggregate_feedback(encoder.dense()), updates, shared)
    np.testing.assert_allclose(mean, np.mean(updates, axis=0), atol=1e-6)


@given(seed=st.integers(0), k=st.integers(1, N))
def test_what_is_missed_is_a_part_of_what_the_predictor_misses(seed: int, k: int) -> None:
    update, shared = draw(seed), Shared(LAYOUT, predictor=draw(seed + 1))
    chosen = cafe.aggregate_feedback(encoder.sparse(selection.top_k(k=k), values.FLOAT32))
    missed = np.sum((mean_of(chosen, [update], shared) - update).astype(np.float64) ** 2)
    assert shared.predictor is not None
    asked = np.sum((update - shared.predictor).astype(np.float64) ** 2)
    assert missed <= (1 - k / N) * asked + 1e-9


def test_a_good_predictor_makes_the_same_payload_size_say_more() -> None:
    trend = draw(1)
    updates = [trend + np.float32(0.1) * draw(seed) for seed in range(2, 7)]
    chosen = cafe.aggregate_feedback(encoder.sparse(selection.top_k(0.1), values.FLOAT16))
    missed = [
        np.linalg.norm(mean_of(chosen, updates, Shared(LAYOUT, predictor=predictor)) - np.mean(updates, axis=0))
        for predictor in (None, trend)
    ]
    assert missed[1] < 0.1 * missed[0]


def test_a_read_only_update_is_left_alone() -> None:
    update = draw(1)
    update.flags.writeable = False
    shared = Shared(LAYOUT, predictor=draw(2))
    chosen = cafe.aggregate_feedback(encoder.dense())
    assert chosen.init(LAYOUT) is None
    assert chosen.encode(update, None, shared, 0) == chosen.encode(draw(1), None, shared, 0)
    np.testing.assert_array_equal(update, draw(1))


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), np.zeros(N)])
def test_a_predictor_that_does_not_fit_is_named(wrong: Vector) -> None:
    shared = Shared(LAYOUT, predictor=wrong)
    with pytest.raises(errors.LayoutError, match="is it of an older epoch"):
        cafe.aggregate_feedback(encoder.dense()).encode(draw(1), None, shared, 0)
    with pytest.raises(errors.LayoutError, match="is it of an older epoch"):
        cafe.restored(draw(1), shared)


def test_an_encoder_with_a_state_is_named() -> None:
    chosen = cafe.aggregate_feedback(feedback.error_feedback(encoder.dense()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="keeps a Residual; the prediction stands in for error feedback"):
        chosen.init(LAYOUT)
