"""`fedpress bench paired` and `tiers`: bad input, and a pair of real runs. ../benchmarks has the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.apps.command_line import invoke

from fedpress.simulations.cli import bench_scenarios
from fedpress.simulations.scenario import scenario

Refused = Callable[[list[str]], str]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["bench", "paired", "--seeds", "1-x"], "expected a range such as 1-10 or numbers such as 3,5,8"),
        (["bench", "paired", "--seeds", "1-3,2"], "expected at least one seed, and each once"),
        (["bench", "paired", "--seeds", "3-1"], "expected at least one seed"),
        (["bench", "paired", "--baseline", "rounds=3"], "rounds differs"),
        (["bench", "tiers"], "the scenario has no tiers that train and teach each other"),
        (["bench", "tiers", "--seeds", "x"], "--seeds: got 'x', expected a range such as 1-10"),
    ],
)
def test_bad_input_is_explained_without_a_traceback(arguments: list[str], text: str, refused: Refused) -> None:
    assert text in refused(arguments)


@pytest.mark.parametrize("name", scenario.names())
def test_the_baseline_is_dense_fedavg(name: str) -> None:
    dense = scenario.load(name, bench_scenarios.FEDAVG)
    assert dense.encoder.kind == "dense" and dense.downlink is None
    assert (dense.server.optimizer, dense.server.learning_rate) == ("sgd", 1.0)


@pytest.mark.long
def test_a_pair_is_shown_and_written(tmp_path: Path) -> None:
    small = ["rounds=2", "clients=4", "sampling.clients_per_round=2", "training.epochs=1", "partition.sizes=equal"]
    options = [part for change in (*small, "workers=1") for part in ("--set", change)]
    done = invoke("bench", "paired", *options, "--seeds", "3", "--json", tmp_path / "pairs.json")
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "pairs.json").read_text())
    (pair,) = figures["pairs"]
    assert pair["seed"] == 3 and figures["half_width"] is None
    assert figures["difference"] == pair["difference"] == pytest.approx(pair["accuracy"] - pair["baseline_accuracy"])
    assert figures["up_ratio"] == pair["baseline_up_bytes"] / pair["up_bytes"] > 50
    assert "(one seed: no interval)" in done.stdout and f"{figures['up_ratio']:,.1f}x less" in done.stdout
