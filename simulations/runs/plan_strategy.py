"""Strategy of a scenario's server, with or without tiers that train."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedpress.compression.files import write_atomically
from fedpress.compression.messages.base_parts import BaseSource
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.task import class_axis_of
from fedpress.server.model import optimizers
from fedpress.server.model.optimizers import ServerOptimizer
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.federation import Federation
from fedpress.server.rounds.settings import ModelSettings, Rounds, Sampling
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.server.strategies.tiered_fed import TieredFed, TierError, TrainingTier
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs.job import Job
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario.scenario import Scenario


def sampling(scenario: Scenario, tier: str | None) -> Sampling:
    """Return the sampling of the nodes that train one model.

    Args:
        scenario: The scenario.
        tier: Name of the tier whose model it is; None: the global model.
    """
    groups = [group.name if group else None for group in scenario.groups]
    if tier not in groups:
        return Sampling(fraction_train=0.0, fraction_evaluate=0.0)
    group = groups.index(tier)
    nodes = scenario.shares(scenario.clients)[group]
    sampled = scenario.shares(scenario.clients_at_work - scenario.sampling.over_selection)[group]
    return Sampling(sampled / nodes, fraction_evaluate=0.0, min_train_nodes=sampled, min_available_nodes=nodes)


def rounds(scenario: Scenario, tier: str | None) -> Rounds:
    """Return the settings of the rounds of one model.

    Args:
        scenario: The scenario.
        tier: Name of the tier whose model it is; None: the global model.
    """
    choice, groups = scenario.sampling, [group.name if group else None for group in scenario.groups]
    return Rounds(
        over_selection=scenario.shares(choice.over_selection)[groups.index(tier)] if tier in groups else 0,
        min_replies=choice.min_replies,
        deadline=choice.deadline,
        schedule=choice.buffer,
    )


def downlink(workload: Workload) -> Downlink | None:
    """Return the downlink of a model, whose version 0 clients make by themselves; None: whole models."""
    choice = workload.scenario.downlink
    if choice is None:
        return None
    density = min(1.0, choice.density * workload.density / workload.scenario.density)
    return Downlink(density, choice.levels, agreed_initial=True, prediction=workload.prediction)


def base(workload: Workload) -> BaseSource | None:
    """Return the pretrained weights that clients without a copy are sent; None: there are none."""
    chosen = workload.scenario.base
    return BaseSource(Path(chosen.path)) if chosen and chosen.path else None


def optimizer(workload: Workload) -> ServerOptimizer:
    """Return the server optimizer of a model."""
    return optimizers.of(workload.scenario.server, workload.server_learning_rate)


def strategy(job: Job, folder: RunFolder, **options: Any) -> SparseFed:
    """Return the strategy of a scenario.

    Args:
        job: Work of the scenario.
        folder: Of the run; gets the shapes of the models that tiers train.
        **options: Arguments of `SparseFed` beside those that follow from the scenario.

    Raises:
        BudgetError: A tier's budget cannot be met.
        TierError: The task has no proxy data, and tiers train.
    """
    workload = job.whole
    scenario = workload.scenario
    options = {
        **asdict(sampling(scenario, None)),
        "rounds": rounds(scenario, None),
        "optimizer": optimizer(workload),
        "downlink": downlink(workload),
        "averaging": scenario.server.ema_decay,
        "layout": workload.layout,
        "base": base(workload),
        "name": workload.federation,
        "seed": scenario.seed,
        **options,
    }
    return _tiered(job, folder, options) if job.tiers else SparseFed(**options)


def _tiered(job: Job, folder: RunFolder, options: dict[str, Any]) -> TieredFed:
    workload, choice = job.whole, job.whole.scenario.teaching
    assert choice is not None  # by the scenario's own check
    proxy = workload.task.data().proxy.inputs
    if model_inputs.count(proxy) == 0:
        raise TierError(f"task {workload.task.name!r} holds out no proxy data, on which tiers teach each other")
    if not folder.architectures.exists():  # read by clients, and needed to load the models
        forms = {name: work.form for name, work in job.tiers.items()}
        write_atomically(folder.architectures, json.dumps(forms, indent=1).encode())
    sliced = choice.method == "heterofl"
    tiers = [TrainingTier(name, _federation(name, work), work.fresh_model()) for name, work in job.tiers.items()]
    model = workload.fresh_model()
    axis = class_axis_of(model, workload.task)
    options |= {} if axis is None else {"class_axis": axis}
    return TieredFed(tiers, model, proxy, None if sliced else choice, sliced=sliced, **options)


def _federation(tier: str, workload: Workload) -> Federation:
    scenario = workload.scenario
    return Federation(
        workload.federation,
        scenario.seed,
        sampling=sampling(scenario, tier),
        rounds=rounds(scenario, tier),
        model=ModelSettings(
            optimizer(workload),
            downlink(workload),
            scenario.server.ema_decay,
            layout=workload.layout,
            base=base(workload),
        ),
    )
