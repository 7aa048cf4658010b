"""Start of a run by a user: its data, devices and keys are checked before there is a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fedpress.compression.models.task import usable
from fedpress.simulations.results.records import Results
from fedpress.simulations.runs import plan_students, runner
from fedpress.simulations.runs.observer import Observer
from fedpress.simulations.runs.workload import Workload
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
        FedpressError: The data are absent or too few, or a trace, a device, a key or the folder cannot be used.
        KeyboardInterrupt: Passed on once the folder is whole.
    """
    make_grid: runner.MakeGrid = runner.inline
    if engine == "flower":
        from fedpress.simulations.engines import flower

        flower.check(scenario, ray_address)
        make_grid = runner.flower(ray_address)
    workload = Workload(scenario)
    workload.examples(0)  # raises for absent data or too few, before there is a run folder
    workload.network  # noqa: B018 - raises for a trace that cannot be used
    usable(scenario.training.device)
    plan_students.signing_key(scenario.students)
    if resume is not None:
        return runner.resume(
            resume, *observers, keep_state=keep_state, keep_payloads=keep_payloads, make_grid=make_grid
        )
    return runner.simulate(
        scenario, out, *observers, keep_state=keep_state, keep_payloads=keep_payloads, make_grid=make_grid
    )
