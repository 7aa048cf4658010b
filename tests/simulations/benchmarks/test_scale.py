"""The benchmark of scale: real runs, each in processes of its own, with the same work in each round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpress.simulations.__main__ import main
from fedpress.simulations.benchmarks import scale
from fedpress.simulations.scenario import scenario as scenarios
from fedpress.simulations.tasks.partition import PartitionError


@pytest.mark.long
def test_each_number_of_clients_is_measured_with_the_same_work(tmp_path: Path) -> None:
    chosen = ["bench", "scale", "--clients", "4,60", "--rounds", "3", "--json", str(tmp_path / "scale.json")]
    done = CliRunner().invoke(main, [*chosen, "--set", "sampling.clients_per_round=4", "--set", "workers=1"])
    assert done.exit_code == 0, done.output
    few, many = json.loads((tmp_path / "scale.json").read_text())
    assert (few["clients"], many["clients"]) == (4, 60)
    assert few["asked"] == 4 < many["asked"] <= 12
    # the same model, so the same files: what was kept back and held of all parameters, and the last answer
    assert few["states"] == pytest.approx(many["states"], rel=0.1)
    assert few["states"] > 8 * 100_000
    for one in (few, many):
        assert one["start"] > 0 and one["start_processor"] > 0.5 and one["seconds"] > 0 and one["processor"] > 0
        assert one["server"] > 50e6 and one["worker"] > 50e6 and one["checkpoint"] > 1e5
    assert "60 clients" in done.output and "1.00x" in done.output


@pytest.mark.long
def test_more_clients_than_examples_are_refused_by_name() -> None:
    chosen = scenarios.load("digits", [*scale.SAME_WORK, "rounds=3"])
    with pytest.raises(PartitionError, match="5000 clients cannot share"):
        scale.run(chosen, [5000])
