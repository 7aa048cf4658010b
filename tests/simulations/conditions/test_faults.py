"""Faults made on purpose go through the real code, cost what they must, and leave the rest of the run whole."""

from pathlib import Path

import pytest

from fedpress.simulations.conditions.faults import KINDS, Chances, Faults
from fedpress.simulations.results.records import Results
from fedpress.simulations.runs import runner
from fedpress.simulations.scenario import scenario

SMALL = [
    "clients=8", "rounds=6", "sampling.clients_per_round=8", "students={tiers: []}", "evaluation.every=6",
    "training={steps: 2, batch_size: 16, learning_rate: 0.1}", "workers=1",
]  # fmt: skip


def run(out: Path, *overrides: str) -> Results:
    return runner.simulate(scenario.load("digits", [*SMALL, *overrides]), out)


def test_each_fault_strikes_as_often_as_it_should_and_again_in_the_same_places() -> None:
    faults = Faults(Chances(lost=0.2, late=1.0), seed=3)
    drawn = [faults.of(client, round) for client in range(40) for round in range(50)]
    assert sum("lost" in found for found in drawn) == pytest.approx(0.2 * 2000, rel=0.15)
    assert all("late" in found and not found & {"crashes", "damaged"} for found in drawn)
    assert drawn == [Faults(Chances(lost=0.2, late=1.0), 3).of(c, r) for c in range(40) for r in range(50)]
    assert drawn != [Faults(Chances(lost=0.2, late=1.0), 4).of(c, r) for c in range(40) for r in range(50)]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("crashes", "error"), ("diverges", "client error"), ("lost", "late"), ("damaged", "undecodable")],
)
def test_a_struck_reply_is_refused_for_its_own_reason(kind: str, reason: str, tmp_path: Path) -> None:
    results = run(tmp_path / "run", f"faults.{kind}=0.4")
    assert 0 < results.faults[kind] < 48
    reasons = [result.reasons for result in results.rounds]
    assert sum(found.get(reason, 0) for found in reasons) == results.faults[kind]
    assert sum(result.replies for result in results.rounds) == 48 - results.faults[kind]


def test_a_doubled_reply_counts_once_and_is_billed_twice(tmp_path: Path) -> None:
    plain, doubled = run(tmp_path / "plain"), run(tmp_path / "doubled", "faults.doubled=1")
    assert [result.replies for result in doubled.rounds] == [8] * 6
    assert [result.accuracy for result in doubled.rounds] == [result.accuracy for result in plain.rounds]
    assert doubled.totals.up_bytes == 2 * plain.totals.up_bytes


def test_late_replies_miss_the_deadline(tmp_path: Path) -> None:
    network = "network={rate_sigma: 0.0, latency: 0.0}"
    results = run(tmp_path / "run", "faults.late=0.3", network, "sampling.deadline=50")
    late = results.faults["late"]
    assert 0 < late < 48
    assert sum(result.reasons.get("late", 0) for result in results.rounds) == late


def test_a_client_that_forgets_takes_part_again(tmp_path: Path) -> None:
    results = run(tmp_path / "run", "faults.forgets=0.5")
    assert [result.replies for result in results.rounds] == [8] * 6
    assert 0 < results.lost_states <= results.faults["forgets"]


BUFFERED = [
    "network={rate_sigma: 1.0}",
    "sampling={schedule: buffered, clients_per_round: 3, concurrency: 5, deadline: 60}",
]


@pytest.mark.parametrize("schedule", [[], BUFFERED], ids=["synchronous", "buffered"])
def test_everything_at_once_is_survived_and_repeats_itself(tmp_path: Path, schedule: list[str]) -> None:
    chances = [*schedule, *(f"faults.{kind}=0.1" for kind in KINDS)]
    one, two = (run(tmp_path / str(workers), *chances, f"workers={workers}") for workers in (1, 2))
    assert one.model.sha256 == two.model.sha256 != ""
    assert one.faults == two.faults and set(one.faults) == set(KINDS)
    assert one.status == "finished" and all(result.replies > 0 for result in one.rounds)
