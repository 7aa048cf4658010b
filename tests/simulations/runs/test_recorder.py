"""Figures of a run as rounds and students come in."""

import logging
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord

from fedpress.compression.models.task import Evaluation
from fedpress.server.app import Delivery
from fedpress.server.publishing.publish import Published
from fedpress.server.rounds.accounting import RoundSummary
from fedpress.server.rounds.outcome import RunFailed
from fedpress.simulations.results.records import RoundResult, StudentResult
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import plan, runner
from fedpress.simulations.runs import recorder as recording
from fedpress.simulations.runs.job import Job
from fedpress.simulations.runs.observer import Observer
from fedpress.simulations.runs.recorder import Recorder
from fedpress.simulations.scenario import scenario

BROKEN_TASK = """
from fedpress.simulations.tasks.digits import Digits

class Broken(Digits):
    def loss(self, outputs, targets):
        if outputs.requires_grad:
            raise RuntimeError("no such loss")
        return super().loss(outputs, targets)
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.slow
def test_clients_that_never_manage_stop_the_run_early_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(BROKEN_TASK)
    (tmp_path / "scenario.yaml").write_text(
        "task: task:Broken\nclients: 2\nrounds: 30\nsampling: {clients_per_round: 2}\n"
    )
    with pytest.raises(RunFailed, match="no such loss"):
        runner.simulate(scenario.load(tmp_path), tmp_path / "run")
    results = RunFolder.open(tmp_path / "run").load_results()
    assert (results.status, len(results.rounds)) == ("failed", 3) and "no such loss" in results.reason


def recorder(folder: Path, *observers: Observer) -> Recorder:
    planned = plan.plan(Job(scenario.load("digits", ["students.tiers=[]"])), RunFolder.create(folder), observers)
    assert isinstance(planned.record, Recorder)
    return planned.record


def summary(number: int, replies: int = 2) -> RoundSummary:
    return RoundSummary(number, ArrayRecord(), replies, up_bytes=10, down_bytes=20, seconds=1.5)


def published(tier: str, path: Path) -> Published:
    return Published(tier, 2, 100, 300, "00", 0.9, 0.8, 0.7, path)


class Told(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.rounds: list[int] = []
        self.resumed: list[int] = []
        self.students: list[StudentResult] = []

    def on_resume(self, rounds: list[RoundResult]) -> None:
        self.resumed = [result.round for result in rounds]

    def on_round(self, result: RoundResult) -> None:
        self.rounds.append(result.round)

    def on_student(self, result: StudentResult) -> None:
        self.students.append(result)


def test_a_round_is_in_the_folder_and_told_as_soon_as_it_is_over(tmp_path: Path) -> None:
    told = Told()
    record = recorder(tmp_path / "run", told)
    record.on_round(summary(1), None)
    record.on_round(summary(2), Evaluation(loss=0.5, accuracy=0.75, count=10))
    first, second = record.folder.load_results().rounds
    assert told.rounds == [1, 2] and (first.accuracy, first.virtual_seconds) == (None, 1.5)
    assert (second.accuracy, second.loss, second.virtual_seconds) == (0.75, 0.5, 3.0)
    assert record.folder.load_results().accuracy == 0.75  # over the rounds that were evaluated


def test_a_recorder_that_goes_on_has_the_figures_of_the_one_before(tmp_path: Path) -> None:
    before, told = recorder(tmp_path / "before"), Told()
    before.on_round(summary(1), Evaluation(0.5, 0.75, 10))
    before.students.append(recording.student_result(published("phone", tmp_path), 0.6))
    after = recorder(tmp_path / "after", told)
    saved = before.state()
    after.restore(saved)
    assert told.resumed == [1] and (after.rounds, after.students) == (before.rounds, before.students)
    after.on_round(summary(2), None)
    assert [result.virtual_seconds for result in after.rounds] == [1.5, 3.0]
    assert after.results().seconds >= saved.seconds


def test_what_a_deployment_waits_for_is_in_the_folder_until_the_round_is_over(tmp_path: Path) -> None:
    record = recorder(tmp_path / "run")
    record.on_silence(1, 2)
    assert "no reply yet in round 1, which was asked 2 time(s)" in record.folder.load_results().waiting
    record.on_round(summary(1), None)
    assert record.folder.load_results().waiting == ""


def test_a_student_is_entered_once_with_what_its_clients_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    record = recorder(tmp_path / "run", told)
    student = published("phone", tmp_path)
    logging.getLogger("flwr").addHandler(caplog.handler)
    record.on_students([
        Delivery(student, 1, None, "the disk is full"), Delivery(student, 2, 0.7), Delivery(student, 3, 1.0)
    ])  # fmt: skip
    (entered,) = record.students
    assert told.students == [entered] and (entered.tier, entered.sha256, entered.warning) == ("phone", "00", "")
    assert entered.accuracy == student.quantized_accuracy == 0.7  # no client's claim is a figure of the run
    assert entered.claimed_accuracies == [0.7, 1.0]
    assert "node 1 could not take student phone: the disk is full" in caplog.text
    assert "node 3 says that student phone has 1.0000, here it has 0.7000" in caplog.text
    record.on_students([Delivery(published("watch", tmp_path), 1, None, "the disk is full")])
    logging.getLogger("flwr").removeHandler(caplog.handler)
    assert record.students[1].warning == "no client could take it: the disk is full"
    assert record.students[1].claimed_accuracies == []


def test_figures_of_a_student_are_those_published_without_its_path(tmp_path: Path) -> None:
    student = published("phone", tmp_path)
    result = recording.student_result(student, 0.6)
    assert set(student._asdict()) - set(result.model_dump()) == {"path"}
    assert (result.accuracy, result.stages, result.candidates) == (0.6, [], [])
