"""The rounds of a scenario: who takes part, and when a round closes."""

from __future__ import annotations

import pytest

from fedpress.server.rounds.buffered import Buffered
from fedpress.simulations.scenario.scenario import Scenario, ScenarioError, load


def test_steps_replace_epochs():
    training = load("digits", ["training.epochs=null", "training.steps=7"]).training
    assert (training.epochs, training.steps) == (None, 7)
    assert Scenario(task={"name": "digits"}, clients=10, rounds=1).training.epochs == 1


def test_the_buffer_is_that_of_the_buffered_schedule_alone() -> None:
    assert load("digits").sampling.buffer is None
    buffered = "sampling={schedule: buffered, clients_per_round: 4, concurrency: 6, staleness_exponent: 0.3}"
    sampling = load("digits", ["network=lte", buffered]).sampling
    assert sampling.buffer == Buffered(4, staleness_exponent=0.3, max_staleness=sampling.max_staleness)


def test_keys_besides_name_and_folder_are_options_of_the_task() -> None:
    task = load("digits", ["task={name: digits, model: mlp, folder: null}"]).task
    assert (task.name, task.folder, task.options) == ("digits", None, {"model": "mlp"})


@pytest.mark.parametrize("wrong", ["evaluation.every=0", "evaluation.split=train", "sampling.clients_per_round=0"])
def test_what_is_out_of_range_is_named_with_its_key(wrong: str) -> None:
    with pytest.raises(ScenarioError, match=f"  {wrong.partition('=')[0]}: got"):
        load("digits", [wrong])
