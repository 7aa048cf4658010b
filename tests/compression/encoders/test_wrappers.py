"""Wrappers around any encoder: no update is longer than its bound, and the density falls as it is said to."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedpress.compression.encoders import encoder, error_feedback, selection, wrappers
from fedpress.compression.encoders.encoder import Encoder, SideInfo
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.wire import values

N = 40
LAYOUT = Layout((TensorSpec("a", (5, 5), "float32"), TensorSpec("b", (), "float32"), TensorSpec("c", (14,), "float32")))


def side_info_at(round: int) -> SideInfo:
    return SideInfo(LAYOUT, round=round)


@given(npst.arrays(np.float32, N, elements=st.floats(-(2.0**100), 2.0**100, width=32)), st.floats(1e-3, 1e3))
def test_no_update_is_longer_than_the_clip(update: Vector, max_norm: float) -> None:
    encoded = wrappers.clipped(encoder.dense(), max_norm).encode(update.copy(), None, side_info_at(0), 0)
    sent = encoded.decoded.dense().astype(np.float64)
    norm = np.linalg.norm(update.astype(np.float64))
    if norm <= max_norm:
        np.testing.assert_array_equal(sent, update)
    else:
        assert np.linalg.norm(sent) <= max_norm * (1 + 1e-6)
        np.testing.assert_allclose(sent, update * (max_norm / norm), rtol=1e-6, atol=2.0**-148)


def test_clipping_outside_of_feedback_keeps_the_residual_in_reach() -> None:
    feedback = error_feedback.error_feedback(encoder.sparse(selection.top_k(0.1), values.FLOAT32))
    chosen = error_feedback.step_ahead(wrappers.clipped(feedback, 1.0))
    *_, state = chosen.encode(np.full(N, 100, np.float32), chosen.init(LAYOUT), side_info_at(0), 0)
    assert chosen.offset(state) is not None
    assert np.linalg.norm(state.residual) <= 1


def test_the_density_falls_exponentially_and_stays() -> None:
    chosen = wrappers.warmed_up(lambda d: encoder.sparse(selection.top_k(d), values.FLOAT32), 0.8, 0.1, 3)
    counts = []
    for round in range(6):
        counts.append(chosen.encode(np.ones(N, np.float32), None, side_info_at(round), 0).decoded.count)
    assert counts == [32, 16, 8, 4, 4, 4]


def test_a_warm_up_of_no_rounds_is_none() -> None:
    chosen = wrappers.warmed_up(lambda d: encoder.sparse(selection.top_k(d), values.FLOAT32), 1.0, 0.1, 0)
    assert chosen.encode(np.ones(N, np.float32), None, side_info_at(0), 0).decoded.count == 4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: wrappers.clipped(encoder.dense(), 0), "max_norm is 0"),
        (lambda: wrappers.clipped(encoder.dense(), float("nan")), "max_norm is nan"),
        (lambda: wrappers.warmed_up(lambda d: encoder.dense(), 0, 0.1, 3), "density 0 is out of range"),
        (lambda: wrappers.warmed_up(lambda d: encoder.dense(), 1, 2, 3), "density 2 is out of range"),
        (lambda: wrappers.warmed_up(lambda d: encoder.dense(), 1, 0.1, -1), "rounds is -1"),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], Encoder[Any]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
