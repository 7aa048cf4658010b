"""Students made anew from a finished run: with the same settings the same files, and nothing else of it changes."""

from pathlib import Path

import pytest
import torch

from fedpress.simulations.results.run_folder import RunFolder, RunFolderError
from fedpress.simulations.runs import remake_students, runner
from fedpress.simulations.runs.remake_students import RemakingError
from fedpress.simulations.scenario import scenario

TIERS = "{tiers: [{name: phone, parameters: 0.05}, {name: own, parameters: 0.05, trains: true}], distill: {epochs: 1}}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    torch.set_num_threads(1)
    short = [
        "clients=4", "rounds=1", "sampling.clients_per_round=2", "workers=1", "training={steps: 2, epochs: null}",
        f"students={TIERS}", "teaching={every: 1, epochs: 1}",
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("finished") / "run"
    runner.simulate(scenario.load("digits", short), path)
    return RunFolder.open(path)


@pytest.mark.long
def test_with_the_same_settings_the_students_are_the_same_to_the_bit(finished: RunFolder, tmp_path: Path) -> None:
    told: list[str] = []
    made = remake_students.remake(finished.path, out=tmp_path / "again", on_student=lambda s: told.append(s.tier))
    first, again = finished.load_results(), made.load_results()
    assert told == ["phone", "own"]
    assert {s.tier: s.sha256 for s in again.students} == {s.tier: s.sha256 for s in first.students}
    assert {s.tier: s.accuracy for s in again.students} == {s.tier: s.accuracy for s in first.students}
    assert (again.rounds, again.model) == (first.rounds, first.model)
    assert again.totals.bundle_bytes == 0 < first.totals.bundle_bytes  # nothing is sent
    assert again.totals.up_bytes + again.totals.down_bytes == first.totals.both_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=2", "seed cannot be changed"),
        ("task=text", "the run is of task 'digits', got 'text'"),
        ("students.tiers.1.parameters=0.1", "a tier that clients trained has its model from the rounds"),
    ],
)
def test_what_the_rounds_have_settled_cannot_be_changed(
    finished: RunFolder, tmp_path: Path, override: str, expected: str
) -> None:
    with pytest.raises(RemakingError, match=expected):
        remake_students.remake(finished.path, [override], tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_a_run_that_is_not_finished_has_no_model_to_begin_with(finished: RunFolder, tmp_path: Path) -> None:
    part = RunFolder.create(tmp_path / "part")
    part.write_scenario(finished.scenario.read_text())
    part.save_results(finished.load_results().model_copy(update={"status": "interrupted"}))
    with pytest.raises(RemakingError, match="is not finished, so it has no model.*--resume"):
        remake_students.remake(part.path)
    with pytest.raises(RunFolderError, match="there is no run folder"):
        remake_students.remake(tmp_path / "nowhere")
