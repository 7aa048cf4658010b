"""`fedpress bench engine`, `codec`, `reuse`, `memory`, `scale` and `hub`: bad input. ../benchmarks runs them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Refused = Callable[[list[str]], str]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["bench", "engine", "--workers", "0"], "got 0, expected at least 1"),
        (["bench", "codec", "--density", "2"], "density 2.0 is out of range; expected 0 < density <= 1"),
        (["bench", "codec", "--values", "int9"], "'int9' is not one of float32"),
        (["bench", "codec", "--data", "cluster"], "data is 'cluster': scenario 'cluster': there is no such file"),
        (["bench", "codec", "--data", "none.npy"], "expected one of clustered, uniform"),
        (["bench", "reuse", "nowhere"], "there is no run folder nowhere"),
        (["bench", "memory", "--plot", "nowhere/memory.svg"], "--plot nowhere/memory.svg: there is no folder nowhere"),
        (["bench", "scale", "--clients", "10,x"], "--clients 10,x: expected numbers from 1 on, such as 100,1000"),
        (["bench", "scale", "--rounds", "2"], "got 2 rounds, expected at least 3"),
        (["bench", "scale", "--clients", "3"], "sampling.clients_per_round"),
        (["bench", "hub", "--downloads", "0"], "got 0, expected at least 1"),
    ],
)
def test_bad_input_is_explained_without_a_traceback(arguments: list[str], text: str, refused: Refused) -> None:
    assert text in refused(arguments)
