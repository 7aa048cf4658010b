"""PowerSGD: exact on matrices of low rank, never further off than nothing, and finite on any finite update."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.samples import normal, side_info_of

from fedpress.compression import errors
from fedpress.compression.encoders import encoder, error_feedback, powersgd
from fedpress.compression.quantizers import lowrank


def test_a_matrix_of_low_rank_arrives_exactly() -> None:
    side_info, random = side_info_of((30, 5, 4), (30,), (40, 50)), np.random.default_rng(1)
    matrices = [
        random.standard_normal((rows, 3)) @ random.standard_normal((3, columns))
        for rows, columns in ((30, 20), (40, 50))
    ]
    vector = np.concatenate([matrices[0].ravel(), np.ones(30), matrices[1].ravel()]).astype(np.float32)
    chosen = powersgd.powersgd(3)
    payload, _, state = chosen.encode(vector.copy(), chosen.init(side_info.layout), side_info, 1)
    assert [part.rank for part in lowrank.parts(side_info.layout, 3)] == [3, 0, 3]
    np.testing.assert_allclose(encoder.decode(payload, side_info).dense(), vector, atol=1e-4)
    assert len(payload) < len(encoder.dense().encode(vector, None, side_info, 0).payload) / 3
    assert len(state.right) == 3 * (20 + 50)


@given(seed=st.integers(0, 2**32), rank=st.integers(1, 4), rows=st.integers(1, 12), columns=st.integers(0, 12))
def test_it_contracts(seed: int, rank: int, rows: int, columns: int) -> None:
    side_info, chosen = side_info_of((rows, columns), (3,)), powersgd.powersgd(rank)
    vector, state = normal(rows * columns + 3, seed), chosen.init(side_info.layout)
    last = np.inf
    for _ in range(4):  # the same update again: the power iteration goes on, and misses less each time
        payload, _, state = chosen.encode(vector.copy(), state, side_info, seed)
        missed = float(np.linalg.norm(encoder.decode(payload, side_info).dense() - vector))
        assert missed <= min(last, float(np.linalg.norm(vector))) * (1 + 1e-4) + 1e-5
        last = missed


def test_it_begins_anew_after_zeros_and_refuses_what_is_not_finite() -> None:
    side_info, chosen = side_info_of((10, 10)), powersgd.powersgd(1)
    state = chosen.init(side_info.layout)
    for vector in (np.zeros(100, np.float32), normal(100)):
        payload, _, state = chosen.encode(vector, state, side_info, 0)
    assert encoder.decode(payload, side_info).dense().any() and state.right.any()
    with pytest.raises(errors.NonFiniteError, match="did training diverge"):
        chosen.encode(np.full(100, np.inf, np.float32), state, side_info, 0)
    huge = np.full(100, np.finfo(np.float32).max, np.float32)
    assert np.isfinite(encoder.decode(chosen.encode(huge, state, side_info, 0).payload, side_info).dense()).all()


def test_error_feedback_keeps_what_the_factors_miss() -> None:
    side_info, chosen = side_info_of((10, 12), (5,)), error_feedback.error_feedback(powersgd.powersgd(2))
    state, accepted, updates = chosen.init(side_info.layout), np.zeros(125), np.zeros(125)
    for round in range(12):
        vector = normal(125, round)
        updates += vector
        payload, _, state = chosen.encode(vector, state, side_info, round)
        state = chosen.acknowledge(state, round % 3 > 0)
        if round % 3:
            encoder.decode(payload, side_info).add_to(accepted)
    np.testing.assert_allclose(accepted + state.residual, updates, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 256])
def test_a_rank_out_of_range_is_named(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank is {rank}, expected 1 to 255"):
        powersgd.powersgd(rank)
