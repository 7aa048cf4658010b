"""Start of a run by a user: what can be known before its first round is checked before there is a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fedpress.compression import free_memory
from fedpress.simulations.results.records import Results
from fedpress.simulations.results.run_folder import RUNS, RunFolder
from fedpress.simulations.runs import checks, forecast, plan, runner
from fedpress.simulations.runs.forecast import Forecast
from fedpress.simulations.runs.job import Job
from fedpress.simulations.runs.observer import Observer
from fedpress.simulations.scenario.scenario import Scenario

Engine = Literal["inline", "flower"]


def launch(
    scenario: Scenario,
    *observers: Observer,
    out: Path | str | None = None,
    resume: Path | None = None,
    engine: Engine = "inline",
    ray_address: str | None = None,
    keep_state: bool = False,
    keep_payloads: bool = False,
) -> Results:
    """Run a scenario, or go on with a run that was stopped.

    Args:
        scenario: The scenario.
        *observers: Follow the run; called in this order.
        out: Path of the run folder, new or empty; None: a new one under `runs/`.
        resume: Folder of a run of this scenario to go on with, instead of a new run.
        engine: "inline", or "flower": Flower's own simulation engine on Ray.
        ray_address: With Flower's engine, address of the Ray cluster; None: this machine.
        keep_state: Keep checkpoints and clients' states in the folder after the end.
        keep_payloads: Write every accepted payload into the folder.

    Raises:
        FedpressError: The run would fail (`checks.check`), has no room (`forecast.check_machine`), or cannot start.
        RunFailed: No reply could be used, or the model is not finite.
        KeyboardInterrupt: Passed on once the folder is whole.
    """
    make_grid: runner.MakeGrid = runner.inline
    if engine == "flower":
        from fedpress.simulations.engines import flower

        flower.check(scenario, ray_address)
        make_grid = runner.flower(ray_address)
    job = Job(scenario)
    if resume is None and out is not None:
        RunFolder(Path(out)).check_empty()  # at once, and not after the checks
    predicted = _predicted(job, keep_payloads)
    free_memory.give_back()  # for the workers
    notes = [*predicted.notes, *forecast.check_machine(predicted, place_of(out, resume))]
    for observer in observers:
        observer.on_notes(notes)
    if resume is not None:
        return runner.resume(
            resume, *observers, keep_state=keep_state, keep_payloads=keep_payloads, make_grid=make_grid
        )
    return runner.simulate(
        scenario, out, *observers, keep_state=keep_state, keep_payloads=keep_payloads, make_grid=make_grid, job=job
    )


def only_check(
    scenario: Scenario,
    *,
    out: Path | str | None = None,
    resume: Path | None = None,
    keep_payloads: bool = False,
) -> Forecast:
    """Check a scenario as before a run, and return what it would train, send, hold and store; nothing is written.

    Args:
        scenario: The scenario.
        out: Path of the run folder, new or empty; None: a new one under `runs/`.
        resume: Folder of a run of this scenario to go on with, instead of a new run.
        keep_payloads: Whether every accepted payload is to be kept.

    Raises:
        FedpressError: The run would fail, or has no room.
    """
    if resume is None and out is not None:
        RunFolder(Path(out)).check_empty()
    job = Job(scenario)
    predicted = _predicted(job, keep_payloads)
    predicted.notes.extend(forecast.check_machine(predicted, place_of(out, resume)))
    return predicted


def _predicted(job: Job, keep_payloads: bool) -> Forecast:
    """Check a scenario, and return what it would train, send, hold and store."""
    checked = checks.check(job, plan.plan)
    free_memory.give_back()  # models that were tried
    return forecast.of(job, checked, keep_payloads=keep_payloads)


def place_of(out: Path | str | None, resume: Path | None) -> Path:
    """Return the path of the folder that a run writes into, or of its parent."""
    return resume if resume is not None else Path(out) if out is not None else RUNS
