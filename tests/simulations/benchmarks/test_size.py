"""The benchmark of large models: each stage of a round is really run, and memory is counted in models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpress.simulations.__main__ import main
from fedpress.simulations.benchmarks import size


def test_models_have_the_number_of_parameters_asked_for() -> None:
    for parameters in (1000, 20_000, 1_000_003, 350_000_000):
        layout = list(size.tensors(parameters))
        assert sum(spec.size for spec in layout) == parameters
        assert len({spec.name for spec in layout}) == len(layout)


@pytest.mark.parametrize("stage", size.STAGES)
def test_every_stage_does_its_work(tmp_path: Path, stage: str) -> None:
    run, keep = size.Party(20_000, tmp_path), []  # type: ignore[var-annotated]
    length = size.STAGES[stage](run, keep)()
    assert length > 0 or stage == "server at rest"
    assert keep or stage in ("client, a round", "snapshot made")


@pytest.mark.long
def test_the_command_prints_ratios_and_writes_json(tmp_path: Path) -> None:
    target = tmp_path / "size.json"
    chosen = [
        "bench",
        "size",
        "--parameters",
        "3e6",
        "--stages",
        "server at rest;update encoded",
        "--json",
        str(target),
    ]
    done = CliRunner().invoke(main, chosen)
    assert done.exit_code == 0, done.output
    rest, encoded = json.loads(target.read_text())
    assert rest["parameters"] == encoded["parameters"] == 3_000_000
    assert 1.5 < rest["after"] / 12e6 < 4  # master and integers are there
    assert encoded["bytes"] > 10_000 and encoded["seconds"] > 0 and encoded["copies"] > 1
    assert "3,000,000" in done.output and "of copies" in done.output


@pytest.mark.parametrize("words", [["--parameters", "many"], ["--parameters", "10"], ["--stages", "server"]])
def test_what_cannot_be_measured_is_refused(words: list[str]) -> None:
    done = CliRunner().invoke(main, ["bench", "size", *words])
    assert done.exit_code == 2 and "error: --" in done.output
