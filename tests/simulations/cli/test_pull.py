"""`fedpress pull` and `run`: bad input; tests/client/download downloads and runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("grpc")

Refused = Callable[[list[str]], str]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["pull", "--tier", "phone"], "'--hub': this option is required"),
        (["pull", "--hub", "127.0.0.1:1"], "'--tier': this option is required"),
        (["pull", "--hub", "a:1", "--tier", "x", "--retries", "-1"], "got -1, expected 0 or more"),
        (["pull", "--hub", "a:1", "--tier", "x", "--watch", "0.5"], "got 0.5, expected at least 1"),
        (["pull", "--hub", "a:1", "--tier", "x", "--token-file", "none"], "none"),
        (["pull", "--hub", "a:1", "--tier", "x", "--verify-key", "full/text"], "full/text"),
        (["run", "phone.fpb"], "'--input': this option is required"),
        (["run", "phone.fpb", "--input", "x.npy", "--out", "y.txt"], "--out y.txt: expected a file .npy in a folder"),
        (["run", "phone.fpb", "--input", "x.npy", "--json", "no/y.json"], "there is no folder no"),
    ],
)
def test_bad_input_is_explained_without_a_traceback(arguments: list[str], text: str, refused: Refused) -> None:
    assert text in refused(arguments)
