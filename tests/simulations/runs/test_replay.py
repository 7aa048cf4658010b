"""A run's bytes on another network: on its own, the times are those that the run had."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpress.compression.ledger import Entry
from fedpress.simulations.conditions.network import PROFILES, Network, NetworkSettings
from fedpress.simulations.results.records import Results
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError
from fedpress.simulations.runs import replay, runner
from fedpress.simulations.runs.replay import ReplayError
from fedpress.simulations.scenario import scenario

SMALL = [
    "clients=8", "rounds=5", "sampling.clients_per_round=4", "evaluation.every=5",
    "training={steps: 2, batch_size: 16, learning_rate: 0.1}",
]  # fmt: skip
NO_STUDENTS = "students={tiers: []}"
TRACE = """client,seconds,up_mbit,down_mbit,latency
*,0,0.02,0.5,0.05
*,1,0,0.05,0.3
*,2.5,0.03,0.05,0.01
2,0,0.5,0.5,0.1
"""


def run(out: Path, *overrides: str) -> Results:
    return runner.simulate(scenario.load("digits", [*SMALL, *overrides]), out)


def times(results: Results) -> list[float]:
    return [result.virtual_seconds for result in results.rounds]


@pytest.mark.long
def test_on_its_own_network_a_run_takes_as_long_as_it_did(tmp_path: Path) -> None:
    """With students, which are downloaded, and clients that need the whole model: on a trace, with jitter and loss."""
    (tmp_path / "trace.csv").write_text(TRACE)
    mixed = f"network={{profile: {{lte: 0.5, lora-like: 0.5}}, trace: {tmp_path / 'trace.csv'}}}"
    students = "students={tiers: [{name: phone, parameters: 6000}], distill: {epochs: 1}, every: 2}"
    results = run(tmp_path / "run", mixed, students, "faults.forgets=0.3")
    assert results.lost_states  # asked twice in a round
    assert replay.virtual_seconds(tmp_path / "run") == pytest.approx(times(results), rel=1e-9)
    assert sum(result.joules for result in results.rounds) <= results.totals.joules
    network = Network(NetworkSettings(**results.scenario["network"]), seed=results.seed)
    ledger = RunFolder(tmp_path / "run").ledger
    assert results.totals.joules == pytest.approx(network.joules_of(replay.Ledger.load(ledger)))


@pytest.mark.slow
def test_workers_change_neither_times_nor_energy_and_a_profile_is_replayed_as_it_would_run(tmp_path: Path) -> None:
    lte = run(tmp_path / "lte", "network=lte", NO_STUDENTS, "workers=1")
    assert run(tmp_path / "two", "network=lte", NO_STUDENTS, "workers=2").rounds == lte.rounds
    slow = run(tmp_path / "3g", "network=3g", NO_STUDENTS)
    # without a deadline the network changes times alone, so the other run is what the replay foretells
    assert slow.model.sha256 == lte.model.sha256 and times(slow) != times(lte)
    assert replay.virtual_seconds(tmp_path / "lte", Network(NetworkSettings(profile="3g"), seed=1)) == pytest.approx(
        times(slow)
    )
    assert slow.totals.joules > lte.totals.joules > 0
    by_profile = {
        name: replay.virtual_seconds(tmp_path / "lte", Network(NetworkSettings(profile=name), seed=1))
        for name in PROFILES
    }
    assert by_profile["fibre"][-1] < by_profile["3g"][-1] < by_profile["lora-like"][-1]
    assert all(sorted(ends) == ends for ends in by_profile.values())


@pytest.mark.slow
def test_what_cannot_be_replayed_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", NO_STUDENTS, "rounds=1")
    assert len(replay.virtual_seconds(tmp_path / "run", Network(seed=1))) == 1
    with pytest.raises(ReplayError, match="its scenario has no network"):
        replay.virtual_seconds(tmp_path / "run")
    buffered = "sampling={schedule: buffered, clients_per_round: 2, concurrency: 4}"
    run(tmp_path / "buffered", NO_STUDENTS, "rounds=2", "network=wifi", buffered)
    with pytest.raises(ReplayError, match="only synchronous rounds"):
        replay.virtual_seconds(tmp_path / "buffered")
    (tmp_path / "run" / "ledger.csv").write_text("nothing")
    with pytest.raises(RunFolderError, match="not a ledger"):
        replay.virtual_seconds(tmp_path / "run", Network(seed=1))


@pytest.mark.slow
def test_with_over_selection_a_round_ends_with_the_first_that_are_enough(tmp_path: Path) -> None:
    results = run(tmp_path / "run", "network=3g", NO_STUDENTS, "sampling={clients_per_round: 3, over_selection: 3}")
    assert replay.virtual_seconds(tmp_path / "run") == pytest.approx(times(results), rel=1e-9)


def test_messages_are_told_apart_by_their_direction() -> None:
    rows = [
        (1, 7, "down", "model", 10), (1, 8, "down", "model", 5), (1, 7, "down", "control", 1),
        (1, 9, "down", "model", 3),
        (1, 7, "up", "control", 2), (1, 7, "down", "model", 100), (1, 8, "up", "update", 4), (1, 7, "up", "update", 20),
        (1, 7, "up", "control", 3), (1, 7, "down", "bundle", 999), (1, 9, "down", "bundle", 999),
        (1, 7, "up", "metrics", 50), (1, 9, "up", "update", 6), (2, 8, "down", "model", 5), (2, 8, "up", "control", 1),
        (2, 8, "down", "model", 80), (2, 7, "down", "evaluate", 5), (2, 7, "up", "evaluate", 5),
    ]  # fmt: skip
    found = replay.exchanges(Entry(*row) for row in rows)
    assert found == {1: {7: [(11, 2), (100, 23)], 8: [(5, 4)], 9: [(3, 6)]}, 2: {}}


@pytest.mark.slow
def test_tiers_that_train_wait_for_their_own_replies_alone(tmp_path: Path) -> None:
    """A reply of another tier, which is there and has not been pulled, is no news."""
    tiers = "students={tiers: [{name: phone, parameters: 0.05, trains: true}], distill: {epochs: 1}}"
    results = run(tmp_path / "run", "network=3g", tiers, "teaching={every: 2, epochs: 1}", "rounds=3")
    assert [result.replies for result in results.rounds] == [4, 4, 4]
    assert 0 < times(results)[0] < times(results)[1] < times(results)[2]


@pytest.mark.long
def test_late_replies_do_not_hold_up_the_download_of_students(tmp_path: Path) -> None:
    """They are under way when the students are sent, and the clock stays where the last download left it."""
    (tmp_path / "trace.csv").write_text(TRACE)
    network = f"network={{profile: lte, trace: {tmp_path / 'trace.csv'}}}"
    students = "students={tiers: [{name: phone, parameters: 6000}], distill: {epochs: 1}, every: 1}"
    results = run(tmp_path / "run", network, students, "sampling.over_selection=2")
    assert replay.virtual_seconds(tmp_path / "run") == pytest.approx(times(results), rel=1e-9)
