"""Student's interval of a mean."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.simulations.report import confidence

VALUES = st.lists(st.floats(-1, 1), min_size=2, max_size=8)


@given(VALUES, st.floats(-5, 5), st.floats(0.01, 100))
def test_it_moves_with_no_shift_and_grows_with_the_scale(values: list[float], shift: float, scale: float) -> None:
    width = confidence.half_width(values)
    assert confidence.half_width([scale * value + shift for value in values]) == pytest.approx(scale * width, abs=1e-9)


def test_one_value_says_nothing_and_equal_ones_all() -> None:
    assert confidence.half_width([0.5]) == confidence.half_width([]) == math.inf
    assert confidence.half_width([0.5, 0.5, 0.5]) == 0


def test_nineteen_of_twenty_intervals_hold_the_mean() -> None:
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 4))
    held = [abs(draw.mean() - 3.0) <= confidence.half_width(draw.tolist()) for draw in draws]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)
