"""The server's side of tiers that train: from a scenario to their strategies."""

from __future__ import annotations

import json
from typing import Any

from fedpress.compression.files import write_atomically
from fedpress.server.model import optimizers
from fedpress.server.model.optimizers import ServerOptimizer
from fedpress.server.model.versions import Downlink
from fedpress.server.strategies import tiered_fed
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs.tier_workload import TierWorkload
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario.scenario import Scenario


def save_architectures(workload: Workload, folder: RunFolder) -> None:
    """Put the shapes of the tiers' models into the run folder, for clients and for whoever opens the models."""
    shapes = {name: work.shapes for name, work in workload.tiers.items() if isinstance(work, TierWorkload)}
    write_atomically(folder.architectures, json.dumps(shapes, indent=1).encode())


def shares(scenario: Scenario, tier: str | None) -> dict[str, Any]:
    """Return how many clients are asked in a round, and of how many: of all, or of those that train a tier's model."""
    names = [group.name if group else None for group in scenario.groups]
    if tier not in names:
        return {"fraction_train": 0.0}
    place, sampling = names.index(tier), scenario.sampling
    nodes = scenario.shares(scenario.clients)[place]
    beyond = scenario.shares(sampling.over_selection)[place]
    asked = scenario.shares(scenario.clients_at_work - sampling.over_selection)[place]
    return {
        "fraction_train": asked / nodes,
        "min_train_nodes": asked,
        "min_available_nodes": nodes,
        "over_selection": beyond,
    }


def downlink(workload: Workload) -> Downlink | None:
    """Return how a model goes down; a slice of another is not drawn by itself."""
    choice, teaching = workload.scenario.downlink, workload.scenario.teaching
    if choice is None:
        return None
    drawn = not (workload.tier and teaching and teaching.method == "heterofl")
    density = min(1.0, choice.density * workload.density / workload.scenario.density)
    return Downlink(density, choice.levels, draw=workload.draw if drawn else None)


def optimizer(workload: Workload) -> ServerOptimizer:
    """Return the rule by which the server steps a model."""
    return optimizers.of(workload.scenario.server, workload.server_learning_rate)


def strategy(
    workload: Workload, folder: RunFolder, options: dict[str, Any], whole: dict[str, Any]
) -> tiered_fed.TieredFed:
    """Return the strategy of a scenario with tiers that train.

    Args:
        workload: the scenario's work.
        folder: of the run; the shapes of the tiers' models go there.
        options: of every model's strategy.
        whole: of the global model's.

    Raises:
        BudgetError: a tier's budget cannot be met.
        TierError: the task has no proxy data.
    """
    choice = workload.scenario.teaching
    assert choice is not None  # by the scenario's own check
    proxy = workload.task.data().proxy.inputs
    if len(proxy) == 0:
        raise tiered_fed.TierError(
            f"task {workload.task.name!r} holds out no proxy data, on which tiers teach each other"
        )
    if not folder.architectures.exists():
        save_architectures(workload, folder)
    sliced = choice.method == "heterofl"
    kind = tiered_fed.Sliced if sliced else SparseFed
    taught = None if sliced else choice
    training = []
    for name, work in workload.tiers.items():
        own = {**options, **shares(workload.scenario, name), "downlink": downlink(work), "layout": work.layout}
        own["optimizer"] = optimizer(work)
        training.append(tiered_fed.TrainingTier(name, kind(**own, federation=work.federation), work.fresh_model()))
    return tiered_fed.TieredFed(training, workload.fresh_model(), proxy, taught, sliced=sliced, **whole)
