"""An observer is told all of a run, in its order; one that listens to nothing changes nothing."""

from pathlib import Path

import pytest

from fedpress.compression.models.step import SearchProgress
from fedpress.simulations.results.records import Results, RoundResult, StudentResult
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import runner
from fedpress.simulations.runs.observer import Observer
from fedpress.simulations.scenario import scenario
from fedpress.simulations.scenario.scenario import Scenario


class Diary(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def on_start(self, scenario: Scenario, folder: RunFolder) -> None:
        self.entries.append(f"start {scenario.name} {folder.path.name}")

    def on_resume(self, rounds: list[RoundResult]) -> None:
        self.entries.append("resume")

    def on_round(self, result: RoundResult) -> None:
        self.entries.append(f"round {result.round}")

    def on_search(self, tier: str, step: SearchProgress) -> None:
        self.entries.append(f"search {tier}")

    def on_student(self, result: StudentResult) -> None:
        self.entries.append(f"student {result.tier}")

    def on_end(self, results: Results) -> None:
        self.entries.append(f"end {results.status}")


@pytest.mark.slow
def test_all_of_a_run_is_told_in_its_order_to_each_observer(tmp_path: Path) -> None:
    short = [
        "clients=4", "rounds=2", "sampling.clients_per_round=2", "workers=1", "training={steps: 2, epochs: null}",
        "students={tiers: [{name: phone, parameters: 0.05, student: auto}], distill: {epochs: 1}, search: {candidates:"
        " 2, finalists: 1}}",
    ]  # fmt: skip
    first, second = Diary(), Diary()
    runner.simulate(scenario.load("digits", short), tmp_path / "run", first, Observer(), second)
    assert first.entries == second.entries
    searches = [entry for entry in first.entries if entry.startswith("search")]
    assert searches and set(searches) == {"search phone"}
    told = [entry for entry in first.entries if not entry.startswith("search")]
    assert told == ["start digits run", "round 1", "round 2", "student phone", "end finished"]
