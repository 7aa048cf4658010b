"""CAFe: the predictor is taken out on one side and put back on the other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.encoders import cafe, encoder, error_feedback, selection
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Dense, Sparse, Update
from fedpress.compression.wire import values

N = 20
LAYOUT = Layout((TensorSpec("weight", (N,), "float32"),))


def draw(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(N).astype(np.float32)


def predictors(seed: int) -> list[Update | None]:
    return [None, Dense(draw(seed)), Sparse(np.array([1, 4, 19]), draw(seed)[:3], N)]


def restored(chosen: Encoder[None], update: Vector, shared: SideInfo, scale: float = 1.0) -> Vector:
    """What the server adds up for one client."""
    payload, *_ = chosen.encode(update.copy(), None, shared, 0)
    said = encoder.decode(payload, shared).dense().copy()
    if shared.predictor is not None:
        shared.predictor.add_to(said, scale)
    return said


@given(seed=st.integers(0), kind=st.integers(0, 2), scale=st.sampled_from([0.25, 1.0, 3.0]))
def test_without_loss_the_update_comes_back(seed: int, kind: int, scale: float) -> None:
    shared = SideInfo(LAYOUT, predictor=predictors(seed + 1)[kind])
    said = restored(cafe.aggregate_feedback(encoder.dense(), scale), draw(seed), shared, scale)
    np.testing.assert_allclose(said, draw(seed), atol=3e-6)


@given(seed=st.integers(0), kind=st.integers(1, 2), k=st.integers(1, N))
def test_what_is_missed_is_a_part_of_what_the_predictor_misses(seed: int, kind: int, k: int) -> None:
    update, shared = draw(seed), SideInfo(LAYOUT, predictor=predictors(seed + 1)[kind])
    chosen = cafe.aggregate_feedback(encoder.sparse(selection.top_k(k=k), values.FLOAT32))
    missed = np.sum((restored(chosen, update, shared) - update).astype(np.float64) ** 2)
    assert shared.predictor is not None
    asked = np.sum((update - shared.predictor.dense()).astype(np.float64) ** 2)
    assert missed <= (1 - k / N) * asked + 1e-5


def test_a_good_predictor_makes_the_same_payload_size_say_more() -> None:
    trend = draw(1)
    updates = [trend + np.float32(0.1) * draw(seed) for seed in range(2, 7)]
    chosen = cafe.aggregate_feedback(encoder.sparse(selection.top_k(0.1), values.FLOAT16))
    missed = []
    for predictor in (None, Dense(trend)):
        said = [restored(chosen, update, SideInfo(LAYOUT, predictor=predictor)) for update in updates]
        missed.append(np.linalg.norm(np.mean(said, axis=0) - np.mean(updates, axis=0)))
    assert missed[1] < 0.1 * missed[0]


def test_a_read_only_update_is_left_alone() -> None:
    update = draw(1)
    update.flags.writeable = False
    shared = SideInfo(LAYOUT, predictor=Dense(draw(2)))
    chosen = cafe.aggregate_feedback(encoder.dense())
    assert chosen.init(LAYOUT) is None
    assert chosen.encode(update, None, shared, 0).payload == chosen.encode(draw(1), None, shared, 0).payload
    np.testing.assert_array_equal(update, draw(1))


def test_a_predictor_that_does_not_fit_is_named() -> None:
    shared = SideInfo(LAYOUT, predictor=Dense(np.zeros(3, np.float32)))
    with pytest.raises(errors.LayoutError, match="3 entries, expected 20; is it of a layout with an older mask"):
        cafe.aggregate_feedback(encoder.dense()).encode(draw(1), None, shared, 0)


def test_an_encoder_with_a_state_is_named() -> None:
    chosen = cafe.aggregate_feedback(error_feedback.error_feedback(encoder.dense()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="keeps a Residual; the prediction stands in for error feedback"):
        chosen.init(LAYOUT)


def test_a_merged_delta_predicts_the_mean_step_and_a_snapshot_nothing() -> None:
    delta = Dense(np.array([3, -6], np.float32))
    moved = cafe.predictor(delta, 2, 5)
    assert moved is not None and moved.values.tolist() == [1, -2]
    assert cafe.predictor(delta, -1, 5) is None and cafe.predictor(delta, 5, 5) is None
