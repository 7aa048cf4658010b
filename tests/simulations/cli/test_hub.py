"""`fedpress hub` and `hub-token`: bad input and the file of tokens; tests/server/hub/test_service.py serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.apps.command_line import invoke

pytest.importorskip("grpc_health")

Refused = Callable[[list[str]], str]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["hub", "full"], "--insecure"),
        (["hub", "full", "--insecure", "--listen", "here"], "here"),
        (["hub", "full", "--insecure", "--public", "--grace", "-1"], "got -1, expected 0 or more"),
        (["hub", "full", "--insecure", "--public", "--stall", "0"], "got 0, expected at least 1"),
        (["hub", "full", "--insecure", "--public", "--downloads", "0"], "got 0, expected at least 1"),
        (["hub-token", "phone", "--tokens", "full"], "full"),
    ],
)
def test_bad_input_is_explained_without_a_traceback(arguments: list[str], text: str, refused: Refused) -> None:
    assert text in refused(arguments)


def test_a_token_is_printed_once_and_its_hash_is_kept(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    made = [invoke("hub-token", name, "--tokens", tokens) for name in ("phone", "sensor")]
    assert [done.exit_code for done in made] == [0, 0]
    printed = [done.stdout.strip() for done in made]
    assert len(set(printed)) == 2
    kept = tokens.read_text()
    assert "phone" in kept and "sensor" in kept and not any(token in kept for token in printed)
    again = invoke("hub-token", "phone", "--tokens", tokens)
    assert again.exit_code == 2 and "phone" in again.stderr
