"""`fedpress students`: new students from the global model of a finished run, with other settings."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
from torch import nn

from fedpress.client.download import receive
from fedpress.compression.errors import FedpressError
from fedpress.compression.models.task import evaluate
from fedpress.server.publishing.publish import Published
from fedpress.server.publishing.store import ModelStore
from fedpress.simulations.results.records import Results, StudentResult
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import plan_students, recorder
from fedpress.simulations.runs.job import Job
from fedpress.simulations.runs.plan_students import OnSearch
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario import scenario as scenarios
from fedpress.simulations.scenario.scenario import Scenario


class RemakingError(FedpressError, ValueError):
    """Students cannot be made from this run, or not with these settings."""


def remake(
    path: Path | str,
    overrides: Sequence[str] = (),
    out: Path | str | None = None,
    on_student: Callable[[StudentResult], None] = lambda _: None,
    on_search: OnSearch = lambda tier, step: None,
) -> RunFolder:
    """Make the students of a finished run again and return their run folder.

    It has the rounds and the model of the first. Nothing is sent: its bytes are those of the rounds alone. Each student
    is opened and evaluated as by a client. Law: without overrides, the bundles are those of the first, to the bit.

    Args:
        path: Folder of the finished run.
        overrides: Changes of its `students`, as `scenario.load` takes them.
        out: Path of the new folder; None: a new one under `runs/`.
        on_student: Called with the result of each student.
        on_search: As for `plan_students.publisher`.

    Raises:
        RunFolderError: There is no such run, or `out` is not empty.
        ScenarioError: An override is not valid.
        RemakingError: The run is not finished, or an override changes more than its students.
        FedpressError: A student cannot be made; then there is no new folder, as after a KeyboardInterrupt.
    """
    first = RunFolder.open(path)
    results = first.load_results()
    if results.status != "finished" or not first.model.is_file():
        raise RemakingError(
            f"the run in {first.path} is not finished, so it has no model to make students from; go on with it:"
            f" fedpress simulate --resume {first.path}"
        )
    before, scenario = scenarios.load(first.scenario), scenarios.load(first.scenario, overrides)
    _check(before, scenario, first)
    job = Job(scenario, first.path)
    workload = job.whole
    model = _loaded(workload.fresh_model(), first.model)
    trained = {
        name: _loaded(work.fresh_model(), first.tiers / f"{name}.safetensors") for name, work in job.tiers.items()
    }
    with tempfile.TemporaryDirectory() as trial:  # errors come before there is a folder
        publisher = plan_students.publisher(workload, RunFolder(Path(trial)), on_search)
        assert publisher is not None  # there are tiers
        publisher.check(model)
    folder = RunFolder.create(out, name=scenario.name)
    try:
        publisher.store = ModelStore(folder.bundles)
        folder.write_scenario(scenario.to_yaml())
        for file in (first.model, first.ledger):
            shutil.copy(file, folder.path)
        made: list[StudentResult] = []
        for published in publisher.publish(len(results.rounds), model, trained):
            made.append(recorder.student_result(published, _accuracy(published, folder, workload)))
            on_student(made[-1])
        folder.save_results(_with(results, scenario, made))
    except BaseException:  # a folder without figures would block the next attempt
        shutil.rmtree(folder.path, ignore_errors=True)
        raise
    return folder


def _check(before: Scenario, scenario: Scenario, folder: RunFolder) -> None:
    changed = sorted(
        key for key, value in scenario.model_dump().items() if before.model_dump()[key] != value and key != "workers"
    )
    if other := [key for key in changed if key not in ("students", "task")]:
        raise RemakingError(
            f"{', '.join(other)} cannot be changed for students of {folder.path}: its rounds are over; run it anew:"
            f" fedpress simulate {folder.scenario} --set ..."
        )
    if before.task.name != scenario.task.name:
        raise RemakingError(f"the run is of task {before.task.name!r}, got {scenario.task.name!r}")
    if before.groups != scenario.groups:
        raise RemakingError(
            "a tier that clients trained has its model from the rounds; leave its settings as they were"
        )
    if not scenario.students.tiers:
        raise RemakingError(
            "there are no tiers, so no students; such as --set 'students.tiers=[{name: phone, parameters: 0.1}]'"
        )
    if scenario.students.teachers == "clients":
        raise RemakingError("students.teachers: the client models of the rounds are gone; leave it at global")


def _loaded(model: nn.Module, path: Path) -> nn.Module:
    safetensors.torch.load_model(model, str(path))
    return model


def _accuracy(published: Published, folder: RunFolder, workload: Workload) -> float:
    kept = receive.receive(published.path.read_bytes(), published.sha256, folder.downloads / "local")
    return evaluate(receive.load(kept, workload.task, workload.base), workload.task, workload.task.data().test).accuracy


def _with(results: Results, scenario: Scenario, made: list[StudentResult]) -> Results:
    totals = results.totals.model_copy(
        update={
            "down_bytes": results.totals.down_bytes - results.totals.bundle_bytes,
            "bundle_bytes": 0,
            "joules": sum(result.joules for result in results.rounds),
        }
    )
    return results.model_copy(update={"scenario": scenario.model_dump(mode="json"), "students": made, "totals": totals})
