"""The benchmark of the engine: real workers, trivial messages."""

import json
from pathlib import Path

import pytest
from tests.apps.command_line import invoke


@pytest.mark.slow
def test_start_and_rate_are_measured(tmp_path: Path) -> None:
    small = ["--messages", 20, "--workers", 1, "--repetitions", 1]
    done = invoke("bench", "engine", *small, "--json", tmp_path / "engine.json")
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "engine.json").read_text())["inline"]
    assert figures["workers"] == 1 and figures["start_seconds"] > 0 and figures["messages_per_second"] > 10
    assert done.stdout.splitlines()[1].split()[:2] == ["inline", "1"]
