"""Whose work a client has: that of its tier, by its own word or in turn; and what a configuration names."""

import subprocess
import sys
from pathlib import Path

from fedpress.simulations.runs import job as jobs
from fedpress.simulations.runs.job import Job
from fedpress.simulations.scenario import scenario

TIERS = [
    "clients=6", "sampling.clients_per_round=3", "teaching={every: 2}",
    "students={tiers: [{name: phone, parameters: 0.05, trains: true}, {name: sensor, parameters: 800, trains: true}]}",
]  # fmt: skip


def test_clients_belong_to_the_models_in_turn_or_to_the_tier_that_they_name() -> None:
    job = Job(scenario.load("digits", TIERS))
    assert [job.of_client(client).tier for client in range(6)] == ["", "phone", "sensor", "", "phone", "sensor"]
    assert job.of_client(0, "sensor") is job.tiers["sensor"] and job.of_client(1, "fridge") is job.whole
    assert list(job.models) == ["", "phone", "sensor"]


def test_where_the_global_model_is_taught_no_client_is_of_it() -> None:
    job = Job(scenario.load("digits", [*TIERS, "teaching={global_model: distilled, every: 2}"]))
    assert {job.of_client(client).tier for client in range(6)} == {"phone", "sensor"}


def test_a_configuration_names_scenario_folder_and_a_node_its_own_data(tmp_path: Path) -> None:
    plain = jobs.load({"scenario": "digits"}).whole
    assert (plain.scenario.name, plain.out, plain.own_data) == ("digits", None, False)
    text = scenario.load("digits", ["rounds=7"]).to_json()
    full = jobs.load({"scenario": text, "out": str(tmp_path), "data-folder": "/data"}).whole
    assert (full.scenario.rounds, full.out, full.own_data) == (7, tmp_path, True)
    assert full.scenario.task.data_dir == "/data"


def test_a_client_of_the_global_model_needs_nothing_that_prunes() -> None:
    """A device has the extra `client`, and little memory for modules."""
    code = (
        "import sys\n"
        "from fedpress.simulations.runs import job\n"
        "job.load({'scenario': 'digits'}).of_client(0).blank_model()\n"
        "assert 'fedpress.compression.models.pruning.structural' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
