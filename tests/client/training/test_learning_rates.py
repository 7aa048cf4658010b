"""Schedules: one clock for all clients, never zero, never rising but in a warm-up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.client.settings import Training
from fedpress.client.training.learning_rates import factor

SCHEDULES = st.sampled_from(["constant", "linear", "cosine"])


@given(SCHEDULES, st.integers(1, 8), st.integers(1, 6), st.floats(0, 9), st.integers(0, 8))
def test_the_factor_is_above_zero_at_most_one_and_falls_after_the_warm_up(
    schedule: str, rounds: int, steps: int, warmup_rounds: float, warmup_steps: int
) -> None:
    settings = Training(schedule=schedule, warmup_rounds=warmup_rounds, warmup_steps=warmup_steps)
    course = [
        [factor(settings, step, steps, number, rounds) for step in range(steps)] for number in range(1, rounds + 1)
    ]
    flat = [value for values in course for value in values]
    assert all(0 < value <= 1 for value in flat)
    after = [v for n, values in enumerate(course) for k, v in enumerate(values) if n + k / steps >= warmup_rounds]
    if not warmup_steps:
        assert after == sorted(after, reverse=True)
        before = flat[: len(flat) - len(after)]
        assert before == sorted(before)


@given(st.integers(1, 50), st.integers(1, 50))
def test_without_a_schedule_the_rate_stays_to_the_bit(steps: int, rounds: int) -> None:
    assert {factor(Training(), step, steps, rounds, rounds) for step in range(steps)} == {1.0}


@given(SCHEDULES, st.integers(1, 20), st.integers(1, 5))
def test_clients_of_unlike_numbers_of_steps_have_the_same_rate_at_the_same_share_of_a_round(
    schedule: str, half: int, number: int
) -> None:
    settings = Training(schedule=schedule)
    few, many = factor(settings, 1, 2, number, 5), factor(settings, half, 2 * half, number, 5)
    assert few == pytest.approx(many)


def test_values_worked_out_by_hand() -> None:
    linear = Training(schedule="linear", warmup_rounds=1)
    found = [factor(linear, step, 2, number, 3) for number in (1, 2, 3) for step in (0, 1)]
    assert found == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert factor(linear, 0, 2, 9, 3) == 0.5  # a service that goes on after its last round
    again = Training(warmup_steps=1)
    assert [factor(again, step, 3, 4, 5) for step in range(3)] == [0.5, 1.0, 1.0]
