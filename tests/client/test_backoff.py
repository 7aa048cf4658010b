"""Waiting between attempts."""

import random

from fedpress.client.backoff import Backoff


def test_waits_double_are_spread_and_begin_anew() -> None:
    waits = Backoff(2.0, 60.0, random.Random(1))
    for limit in (2, 4, 8, 16, 32, 60, 60):
        assert limit / 2 <= waits.wait() <= limit
    waits.reset()
    assert waits.wait() <= 2
    fleet = {Backoff(2.0, 60.0).wait() for _ in range(20)}
    assert len(fleet) == 20
