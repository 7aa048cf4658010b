"""The table of ways to serve small devices: its rows are scenarios, and its figures those of runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import payloads
from fedpress.simulations.__main__ import main
from fedpress.simulations.benchmarks import tiers
from fedpress.simulations.benchmarks.tiers import TierRow, TiersBenchError
from fedpress.simulations.report import tables
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import plan_strategy, runner
from fedpress.simulations.runs.job import Job
from fedpress.simulations.scenario import scenario

SHORT = [
    "rounds=2", "clients=4", "sampling.clients_per_round=3", "training.epochs=1", "workers=1",
    "teaching={every: 2, epochs: 1}",
    "students={tiers: [{name: phone, parameters: 0.05, trains: true}, "
    "{name: sensor, parameters: 800, trains: true, density: 0.2, server_learning_rate: 0.5}]}",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_rows_differ_in_who_trains_what() -> None:
    base = scenario.load("digits", SHORT)
    made = {row: tiers.scenario_of(base, row, 3) for row in tiers.ROWS}
    assert {one.seed for one in made.values()} == {3} and {one.name for one in made.values()} == {"digits"}
    assert made["taught"] == base.model_copy(update={"seed": 3})
    groups = {row: [group and group.name for group in one.groups] for row, one in made.items()}
    every = [None, "phone", "sensor"]
    assert groups == {"taught": every, "apart": every, "heterofl": every, "smallest": ["sensor"], "students": [None]}
    assert made["apart"].teaching is not None and made["apart"].teaching.every == 0
    assert [tier.name for tier in made["students"].students.tiers] == ["phone", "sensor"]
    rates = {row: one.students.tiers[-1].server_learning_rate for row, one in made.items()}
    assert rates == {"taught": 0.5, "apart": 0.5, "heterofl": None, "smallest": 0.5, "students": None}


def test_a_tier_may_send_more_and_step_less() -> None:
    job = Job(scenario.load("digits", SHORT))
    work, phone, sensor = job.whole, job.tiers["phone"], job.tiers["sensor"]
    assert (phone.density, sensor.density) == (work.density, 0.2)
    going_down = [plan_strategy.downlink(each) for each in (work, phone, sensor)]
    assert [each and each.density for each in going_down] == [0.01, 0.01, pytest.approx(0.2)]
    assert [each.server_learning_rate for each in (work, phone, sensor)] == [1.5, 1.5, 0.5]
    update = np.random.default_rng(0).standard_normal(sensor.layout.size).astype(np.float32)
    payload, *_ = sensor.encoder.encode(update, sensor.encoder.init(sensor.layout), SideInfo(sensor.layout), 0)
    assert payloads.inspect(payload)["count"] == round(0.2 * sensor.layout.size)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(TiersBenchError, match="the scenario has no tiers that train and teach each other"):
        tiers.scenario_of(scenario.load("digits"), "apart", 1)
    with pytest.raises(TiersBenchError, match="row 'aprt': expected taught, apart, .*did you mean 'apart'"):
        list(tiers.run(scenario.load("digits", SHORT), ["aprt"], 1, Path("nowhere")))


def test_the_table_has_means_and_the_gap_is_from_the_model_alone_to_the_best_global_one() -> None:
    rows = [
        TierRow("taught", 1, {"": 0.80, "phone": 0.78}, {}, {}),
        TierRow("apart", 1, {"": 0.75, "phone": 0.70}, {}, {}),
        TierRow("students", 1, {"": 0.86, "phone": 0.85}, {}, {}),
        TierRow("taught", 2, {"": 0.82, "phone": 0.80}, {}, {}),
        TierRow("apart", 2, {"": 0.77, "phone": 0.74}, {}, {}),
    ]
    columns, lines = tiers.table(rows)
    assert columns == ("row", "global", "phone", "what it is")
    assert [line[:3] for line in lines] == [
        ("taught", "81.00%", "79.00%"), ("apart", "76.00%", "72.00%"), ("students", "86.00%", "85.00%"),
    ]  # fmt: skip
    assert tiers.closed(rows) == {"phone": pytest.approx(((0.16 + 0.08) / 2, (0.08 + 0.06) / 2))}


@pytest.mark.long
def test_the_command_makes_what_is_missing_and_nothing_twice(tmp_path: Path) -> None:
    options = [part for value in SHORT for part in ("--set", value)]
    command = [
        "bench",
        "tiers",
        "digits",
        *options,
        "--out",
        str(tmp_path / "rows"),
        "--json",
        str(tmp_path / "t.json"),
    ]
    rows = ["--only", "apart", "--only", "proxy", "--only", "tuned", "--only", "late"]
    done = CliRunner().invoke(main, [*command, *rows])
    assert done.exit_code == 0, done.output
    folder = RunFolder(tmp_path / "rows" / "seed-1" / "apart")
    written = folder.results.stat().st_mtime_ns
    found = {row["name"]: row["accuracy"] for row in json.loads((tmp_path / "t.json").read_text())["rows"]}
    assert set(found) == {"apart", "proxy", "tuned", "late"}
    assert found["proxy"]["phone"] > 0.6 > 0.3 > found["apart"]["phone"]  # 300 labels against two rounds
    again = CliRunner().invoke(main, [*command, "--only", "apart", "--only", "late"])
    assert again.exit_code == 0 and folder.results.stat().st_mtime_ns == written
    assert again.stdout.splitlines()[1] in done.stdout
    other = CliRunner().invoke(main, [*command, "--only", "apart", "--set", "rounds=3"])
    assert other.exit_code == 2 and "holds a run of another scenario (rounds)" in other.stderr
    # What the folder says by tier is what `inspect` shows.
    facts = dict(tables.run_facts(folder.load_results()))
    assert facts["tier sensor"].startswith("accuracy ") and "parameters" in facts["tier sensor"]


@pytest.mark.long
def test_one_and_two_workers_end_with_the_same_models(tmp_path: Path) -> None:
    base = scenario.load("digits", SHORT)
    one = runner.simulate(base, tmp_path / "one")
    two = runner.simulate(base.model_copy(update={"workers": 2}), tmp_path / "two")
    assert one.model.sha256 == two.model.sha256 and one.rounds == two.rounds and one.tiers == two.tiers
    for name in ("phone", "sensor"):
        models = [(tmp_path / run / "tiers" / f"{name}.safetensors").read_bytes() for run in ("one", "two")]
        assert models[0] == models[1]
