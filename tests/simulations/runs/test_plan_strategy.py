"""From a scenario to its strategy: clients of a round are divided among the models, and tiers get what is theirs."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.server.strategies.tiered_fed import TieredFed
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import plan_strategy
from fedpress.simulations.runs.job import Job
from fedpress.simulations.scenario import scenario
from fedpress.simulations.scenario.scenario import Scenario

TIERS = "students={tiers: [{name: phone, parameters: 0.05, trains: true, density: 0.1, server_learning_rate: 0.5}]}"
TAUGHT = [TIERS, "teaching={every: 2}"]


@given(clients=st.integers(4, 60), per_round=st.integers(2, 30), extra=st.integers(0, 10))
def test_the_clients_of_a_round_are_divided_among_the_models(clients: int, per_round: int, extra: int) -> None:
    per_round = min(per_round, clients)
    extra = min(extra, clients - per_round)
    chosen = scenario.load(
        "digits",
        [f"clients={clients}", f"sampling.clients_per_round={per_round}", f"sampling.over_selection={extra}",
         "network=lte", *TAUGHT],
    )  # fmt: skip
    samplings = [plan_strategy.sampling(chosen, tier) for tier in (None, "phone")]
    assert sum(sampling.min_train_nodes for sampling in samplings) == per_round
    assert sum(sampling.min_available_nodes for sampling in samplings) == clients
    for sampling in samplings:
        asked = sampling.fraction_train * sampling.min_available_nodes
        assert asked == pytest.approx(sampling.min_train_nodes) and sampling.fraction_evaluate == 0
    assert sum(plan_strategy.rounds(chosen, tier).over_selection for tier in (None, "phone")) == extra


def test_where_the_global_model_is_taught_nobody_trains_it() -> None:
    chosen = scenario.load("digits", [TIERS, "teaching={every: 2, global_model: distilled}"])
    assert plan_strategy.sampling(chosen, None).fraction_train == 0
    assert plan_strategy.sampling(chosen, "phone").min_train_nodes == 10


def test_a_buffered_schedule_is_the_servers() -> None:
    buffered = "sampling={schedule: buffered, clients_per_round: 4, concurrency: 6}"
    chosen = scenario.load("digits", ["network=lte", buffered])
    schedule = plan_strategy.rounds(chosen, None).schedule
    assert schedule is not None and schedule == chosen.sampling.buffer
    assert plan_strategy.rounds(scenario.load("digits"), None).schedule is None


def job(*overrides: str) -> Job:
    return Job(scenario.load("digits", list(overrides)))


def test_a_tier_sends_and_steps_as_it_says_itself() -> None:
    made = job(*TAUGHT)
    tier = made.tiers["phone"]
    assert plan_strategy.optimizer(tier) != plan_strategy.optimizer(made.whole)
    whole, part = plan_strategy.downlink(made.whole), plan_strategy.downlink(tier)
    assert whole is not None and part is not None
    assert part.density == pytest.approx(whole.density * 0.1 / 0.01)  # down as much denser as up
    assert plan_strategy.downlink(job("downlink=null").whole) is None


@pytest.mark.parametrize("teaching", ["{every: 2}", "{method: heterofl}"])
def test_every_model_of_a_scenario_begins_at_the_clients_without_being_sent(teaching: str) -> None:
    slices = "students={tiers: [{name: phone, parameters: 0.05, trains: true}]}"
    made = job(slices, f"teaching={teaching}")
    for work in made.models.values():
        chosen = plan_strategy.downlink(work)
        assert chosen is not None and chosen.agreed_initial


def test_tiers_that_train_have_a_strategy_with_them_and_their_shapes_in_the_folder(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    assert not isinstance(plan_strategy.strategy(job(), folder), TieredFed) and not folder.architectures.exists()
    made = job(*TAUGHT)
    strategy = plan_strategy.strategy(made, folder)
    assert isinstance(strategy, TieredFed) and [tier.name for tier in strategy.training_tiers] == ["phone"]
    shapes = json.loads(folder.architectures.read_text())
    assert {name: tuple(shape) for name, shape in shapes["phone"][0].items()} == made.tiers["phone"].form[0]


def test_a_scenario_is_read_without_change() -> None:
    chosen = scenario.load("digits", TAUGHT)
    assert Scenario.from_json(chosen.to_json()) == chosen
