"""`fedpress probe`: bad input; tests/simulations/runs/test_probe_tiers.py measures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Refused = Callable[[list[str]], str]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["probe", "digitz"], "did you mean 'digits'?"),
        (["probe", "--threads", "0"], "got 0, expected at least 1"),
        (["probe", "--json", "nowhere/phone.json"], "there is no folder nowhere"),
    ],
)
def test_bad_input_is_explained_without_a_traceback(arguments: list[str], text: str, refused: Refused) -> None:
    assert text in refused(arguments)
