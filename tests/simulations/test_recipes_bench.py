"""The table of recipes: its rows are scenarios, and its figures those of runs."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedpress.compression import recipes
from fedpress.simulations import recipes_bench, scenario
from fedpress.simulations.__main__ import main
from fedpress.simulations.recipes_bench import Outcome, RecipesError


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_every_recipe_has_a_row_that_loads_for_every_scenario() -> None:
    rows = recipes_bench.chosen()
    loaded = {row.name: [recipes_bench.load(name, row) for name in scenario.names()] for row in rows}
    assert {one.encoder.recipe for ours in loaded.values() for one in ours} == {None, *recipes.RECIPES}
    assert len(loaded) == len(rows)


def test_overrides_come_after_those_of_the_row() -> None:
    (row,) = recipes_bench.chosen(["dgc"])
    loaded = recipes_bench.load("digits", row, ["server.learning_rate=0.7", "rounds=2"])
    assert (loaded.encoder.recipe, loaded.server.learning_rate, loaded.rounds) == ("dgc", 0.7, 2)


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(RecipesError, match="did you mean 'qsgd\\(4\\)'"):
        recipes_bench.chosen(["stc", "qsgd4"])
    with pytest.raises(RecipesError, match="at least one seed"):
        recipes_bench.run([], [])


def test_figures_are_over_the_seeds() -> None:
    outcome = Outcome("a", "sgd 1", [0.9, 0.92, 0.94], 2e6, 100e6)
    assert recipes_bench.cells(outcome) == ["a", "sgd 1", "92.00%", "2.00", "2.00", "50.0x"]
    assert recipes_bench.cells(outcome._replace(accuracies=[0.9]))[3] == "-"


@pytest.mark.slow
def test_the_table_and_its_json(tmp_path: Path) -> None:
    target = tmp_path / "table.json"
    short = ["--set", "rounds=1", "--set", "training.epochs=1", "--set", "sampling.per_round=2", "--set", "workers=1"]
    rows = ["--only", "dense float32", "--only", "signsgd"]
    done = CliRunner().invoke(main, ["bench", "recipes", *rows, *short, "--seeds", "1-2", "--json", str(target)])
    assert done.exit_code == 0, done.output
    head, dense, signs, _ = done.stdout.splitlines()
    assert head.split() == ["recipe", "server", "accuracy", "+-", "MB", "up", "fewer", "bytes"]
    assert dense.startswith("dense float32") and dense.endswith("1.0x") and signs.startswith("signsgd")
    found = json.loads(target.read_text())
    assert [row["name"] for row in found] == ["dense float32", "signsgd"]
    assert found[1]["seeds"] == [1, 2] and len(found[1]["accuracies"]) == 2 and 25 < found[1]["up_ratio"] < 33
    assert found[1]["scenario"]["server"]["optimizer"] == "majority_vote"
