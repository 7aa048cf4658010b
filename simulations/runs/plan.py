"""Server's plan of a scenario.

The ServerApp calls `load` by its name in the run's configuration (`plan`, `scenario`, `out`), so that `server/` imports
nothing from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from logging import INFO, getLogger
from typing import Any

from fedpress.compression.models.step import SearchProgress
from fedpress.server import app as server
from fedpress.server.checkpoint.checkpoint_folder import CheckpointFolder
from fedpress.server.fusion.client_ensemble import ClientModels
from fedpress.simulations.results import start
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import checks, plan_masks, plan_strategy, plan_students
from fedpress.simulations.runs import job as jobs
from fedpress.simulations.runs.job import Job
from fedpress.simulations.runs.observer import Observer
from fedpress.simulations.runs.recorder import Recorder
from fedpress.simulations.scenario.scenario import Scenario

REFERENCE = "fedpress.simulations.runs.plan:load"
"""Value of `plan` in the configuration of a run."""
CHECKED = "checked"
"""Key of a run's configuration: whether `checks` were made before it was submitted."""


def load(run_config: Mapping[str, Any]) -> server.Plan:
    """Return the server's plan for a run's configuration.

    The run folder is a new one, or that of a killed run of this scenario, which then goes on.

    Args:
        run_config: Configuration, as of `job.load`; `CHECKED` is set where the scenario has been checked already.

    Raises:
        ScenarioError: The scenario is not valid.
        FedpressError: The run would fail (`checks.check`).
        RunFolderError: The folder holds anything else.
    """
    job = jobs.load(run_config)
    begins = job.whole.out is None or not start.goes_on(RunFolder(job.whole.out), job.whole.scenario)
    if begins and not run_config.get(CHECKED):
        for note in checks.check(job, plan).notes:
            getLogger("flwr").warning("%s", note)
    folder = start.folder_of(job.whole.scenario, job.whole.out)
    getLogger("flwr").log(INFO, "run folder: %s", folder.path.resolve())
    return dataclasses.replace(plan(job, folder), patient=True, checked=begins)  # a deployment waits for its devices


def plan(
    job: Job, folder: RunFolder, observers: Sequence[Observer] = (), *, keep_payloads: bool = False
) -> server.Plan:
    """Return the server's plan, which keeps the run folder up to date.

    Args:
        job: Work of the scenario.
        folder: Of the run.
        observers: Follow the run.
        keep_payloads: Write every accepted payload into the folder.
    """
    workload = job.whole
    scenario = workload.scenario
    if not folder.partition.exists():
        workload.save_parts(folder)
    clients = client_models(scenario)
    strategy = plan_strategy.strategy(
        job,
        folder,
        on_accepted=folder.save_payload if keep_payloads else None,
        checkpoints=CheckpointFolder(folder.checkpoints, budget=scenario.checkpoint_budget),
        masks=plan_masks.schedule(workload, folder),
        clients=clients,
        fusion=plan_students.fusion(workload),
    )
    recorder = Recorder(job, folder, strategy, observers)
    strategy.companions["results"] = recorder

    def on_search(tier: str, step: SearchProgress) -> None:
        for observer in observers:
            observer.on_search(tier, step)

    return server.Plan(
        task=workload.task,
        strategy=strategy,
        model=workload.fresh_model(),
        rounds=scenario.rounds,
        record=recorder,
        evaluate_on=getattr(workload.task.data(), scenario.evaluation.split),
        evaluate_every=scenario.evaluation.every,
        publisher=plan_students.publisher(workload, folder, on_search, clients),
        publish_every=scenario.students.every,
        downloads_per_tier=scenario.students.downloads_per_tier,
        device=scenario.training.device,
    )


def client_models(scenario: Scenario) -> ClientModels | None:
    """Return the store for the client models of a round; None: no student learns from them."""
    return ClientModels() if scenario.students.teachers == "clients" and scenario.students.tiers else None
