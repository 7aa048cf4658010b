"""`fedpress bench wire` and `warm`: bad input; tests/simulations/benchmarks runs them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Refused = Callable[[list[str]], str]


@pytest.mark.parametrize("command", ["wire", "warm"])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--rounds", "1"], "expected at least 2, since the first is left out"),
        (["--nodes", "0"], "got 0, expected at least 1"),
        (["--set", "nonsense=1"], "1 problem "),  # and none with what the command itself sets
    ],
)
def test_bad_input_is_explained_without_a_traceback(
    command: str, options: list[str], text: str, refused: Refused
) -> None:
    assert text in refused(["bench", command, *options])
