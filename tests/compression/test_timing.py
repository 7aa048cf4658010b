"""Where the time goes: no second twice, and none lost."""

import time
from collections.abc import Iterator

import pytest

from fedpress.compression.timing import Timer


def slowly(count: int) -> Iterator[int]:
    for number in range(count):
        time.sleep(0.02)
        yield number


def test_the_inner_phase_takes_its_time_from_the_outer() -> None:
    phases, began = Timer(), time.monotonic()
    with phases.of("step"):
        for _ in phases.each("replies", slowly(3)):
            time.sleep(0.01)
        with phases.of("checkpoint"):
            time.sleep(0.02)
    whole = time.monotonic() - began
    assert set(phases.seconds) == {"step", "replies", "checkpoint"}
    assert sum(phases.seconds.values()) == pytest.approx(whole, abs=2e-3)
    assert phases.seconds["replies"] >= 0.06 and phases.seconds["checkpoint"] >= 0.02
    assert 0.03 <= phases.seconds["step"] <= whole - 0.08


def test_an_error_ends_its_phase() -> None:
    phases = Timer()
    with pytest.raises(ValueError), phases.of("step"), phases.of("evaluation"):
        raise ValueError
    time.sleep(0.01)
    with phases.of("orders"):
        pass
    assert phases.seconds["orders"] < 0.01


def test_what_is_taken_is_not_counted_again() -> None:
    phases = Timer()
    with phases.of("client"):
        time.sleep(0.02)
        first = phases.taken()
        time.sleep(0.01)
    assert first["client"] >= 0.02 > phases.seconds["client"] >= 0.01
