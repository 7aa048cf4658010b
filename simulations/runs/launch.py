"""The start of a run as a user asks for one: what it needs is looked for before there is a run folder."""

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
        scenario: What to run.
        *observers: Are told what happens, in turn.
        out: The run folder of a new run, new or empty; None makes one under `runs/`.
        resume: The folder of a run of this scenario that is to go on, instead of a new one.
        engine: "inline", or "flower": Flower's own simulation engine on Ray.
        ray_address: With Flower's engine, the Ray cluster; None: this machine.
        keep_state: Whether checkpoints and clients' states stay in the folder after the end.
        keep_payloads: Whether the folder gets every accepted payload as a file.

    Raises:
        FedpressError: The data are absent or too few, a trace, a device or a key cannot be used, or the folder cannot.
        KeyboardInterrupt: Passed on once the folder is whole.
    """
    make_grid: runner.MakeGrid = runner.inline
    if engine == "flower":
        from fedpress.simulations.engines import flower

        flower.check(scenario, ray_address)
        make_grid = runner.flower(ray_address)
    workload = Workload(scenario)
    workload.examples(0)  # absent data, or too few, are found out before there is a run folder
    workload.network  # noqa: B018 - and so is a trace that cannot be used
    usable(scenario.training.device)
    plan_students.signing_key(scenario.students)
    if resume is not None:
        return runner.resume(
            resume, *observers, keep_state=keep_state, keep_payloads=keep_payloads, make_grid=make_grid
        )
    return runner.simulate(
        scenario, out, *observers, keep_state=keep_state, keep_payloads=keep_payloads, make_grid=make_grid
    )
