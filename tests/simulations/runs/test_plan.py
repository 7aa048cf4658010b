"""The server's plan, as a ServerApp finds it by the run's configuration."""

from pathlib import Path

import pytest
import torch

from fedpress.server import app as server
from fedpress.simulations.engines.inline import InlineGrid
from fedpress.simulations.results.records import RoundResult
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError
from fedpress.simulations.runs import job, plan, runner
from fedpress.simulations.runs.job import Job
from fedpress.simulations.runs.observer import Observer
from fedpress.simulations.runs.recorder import Recorder
from fedpress.simulations.scenario import scenario
from fedpress.simulations.scenario.scenario import Scenario, ScenarioError

SHORT = ["clients=4", "rounds=5", "training.epochs=1", "workers=1", "students.tiers=[]", "sampling.clients_per_round=3"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def chosen(*more: str) -> Scenario:
    return scenario.load("digits", [*SHORT, *more])


class StopAfterThree(Observer):
    """Breaks a run off."""

    def on_round(self, result: RoundResult) -> None:
        if result.round == 3:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_server_app_on_another_engine_goes_on_by_itself(tmp_path: Path) -> None:
    """As on Flower's own engine, whose clients do not survive: they say that their state is lost, and take part."""
    with pytest.raises(KeyboardInterrupt):
        runner.simulate(chosen(), tmp_path / "run", StopAfterThree())
    config = {"workload": job.REFERENCE, "scenario": chosen().to_json(), "out": str(tmp_path / "run")}
    planned = plan.load(config)
    with InlineGrid("fedpress.client.app:app", clients=4, workers=1, run_config=config) as grid:
        server.serve(planned, grid)
    results = RunFolder.open(tmp_path / "run").load_results()
    assert (results.status, [one.replies for one in results.rounds]) == ("finished", [3] * 5)
    assert planned.strategy.federation.accounting.lost_states == 4
    with pytest.raises(RunFolderError, match="not empty"):
        plan.load(config)


def test_a_plan_is_what_the_scenario_says(tmp_path: Path) -> None:
    config = {"scenario": chosen("evaluation={every: 2, split: validation}").to_json(), "out": str(tmp_path / "run")}
    planned = plan.load(config)
    assert (planned.rounds, planned.evaluate_every, planned.publisher) == (5, 2, None)
    assert len(planned.evaluate_on.targets) == 100  # the validation part of digits
    assert isinstance(planned.record, Recorder) and planned.strategy.companions["results"] is planned.record
    folder = RunFolder(tmp_path / "run")
    assert folder.partition.is_file() and folder.scenario.is_file() and not folder.results.exists()


def test_a_partition_that_is_in_the_folder_is_not_drawn_again(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    plan.plan(Job(chosen(), folder.path), folder)
    written = folder.partition.stat().st_mtime_ns
    plan.plan(Job(chosen(), folder.path), folder)
    assert folder.partition.stat().st_mtime_ns == written


def test_client_models_are_kept_where_students_learn_from_them() -> None:
    tiers = "students.tiers=[{name: phone, parameters: 0.1}]"
    assert plan.client_models(chosen(tiers, "students.teachers=clients")) is not None
    for other in ([], ["students.teachers=clients"], [tiers]):
        assert plan.client_models(chosen(*other)) is None


def test_a_configuration_without_a_valid_scenario_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="rounds: got 0"):
        plan.load({"scenario": '{"task": {"name": "digits"}, "clients": 3, "rounds": 0}', "out": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()
