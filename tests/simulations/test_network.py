"""Virtual time: exact where nothing is drawn, the same by seed where something is."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from fedpress.simulations import network
from fedpress.simulations.network import Network, VirtualClock

EVEN = {
    "up_mbit": 1.0,
    "down_mbit": 10.0,
    "examples_per_second": 100.0,
    "latency": 0.1,
    "spread": 0.0,
    "dropout": 0.0,
    "seed": 1,
}


def test_examples_in_docstrings():
    assert doctest.testmod(network).failed == 0


def test_time_is_the_sum_of_its_parts():
    even = Network(**EVEN)
    seconds = even.seconds(client=3, round=1, down_bytes=1_250_000, examples=50, up_bytes=125_000)
    assert seconds == pytest.approx(2 * 0.1 + 1.0 + 0.5 + 1.0)


def test_links_are_spread_around_their_medians_and_stay_the_same():
    uneven = Network(**{**EVEN, "spread": 0.5})
    links = np.array([uneven.link(client) for client in range(500)])
    assert np.median(links, axis=0) == pytest.approx([1.0, 10.0, 100.0], rel=0.15)
    assert np.std(np.log(links), axis=0) == pytest.approx([0.5] * 3, rel=0.15)
    assert abs(np.corrcoef(np.log(links).T)[0, 1]) < 0.2
    assert uneven.link(7) == Network(**{**EVEN, "spread": 0.5}).link(7)
    assert uneven.link(7) != Network(**{**EVEN, "spread": 0.5, "seed": 2}).link(7)


def test_who_drops_out_takes_for_ever():
    flaky = Network(**{**EVEN, "dropout": 0.3})
    answered = [flaky.answers(client, round) for client in range(50) for round in range(20)]
    assert np.mean(answered) == pytest.approx(0.7, abs=0.05)
    silent = next(client for client in range(50) if not flaky.answers(client, 1))
    assert flaky.seconds(client=silent, round=1, down_bytes=1, examples=1, up_bytes=1) == math.inf
    assert any(flaky.answers(silent, round) for round in range(20))


def test_the_clock_goes_forward_only():
    clock = VirtualClock()
    clock.advance_to(2.5)
    clock.advance_to(2.5)
    assert clock.now() == 2.5
    for time in (2.4, math.inf, math.nan):
        with pytest.raises(ValueError, match="only forward"):
            clock.advance_to(time)
    assert clock.now() == 2.5
