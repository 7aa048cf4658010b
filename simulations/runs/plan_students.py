"""From the students of a scenario to the settings of what makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedpress.compression.models.bundles import signing
from fedpress.compression.models.distillation.data_free import RECIPES, DataFree
from fedpress.compression.models.distillation.distill import Distillation
from fedpress.compression.models.distillation.sequence_level import Continuations
from fedpress.compression.models.distillation.teacher_assistants import Assistants
from fedpress.compression.models.students.pipeline import StudentPipeline, StudentSpec
from fedpress.compression.models.students.search import Search, Step
from fedpress.server.fusion.client_ensemble import ClientModels, Fusion
from fedpress.server.publishing import publish
from fedpress.server.publishing.store import ModelStore
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import tier_workload
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario.students import DataFreeChoice, Students, Tier

OnSearch = Callable[[str, Step], None]


def fusion(workload: Workload) -> Fusion | None:
    """Return how client models teach the global one; None: they do not.

    Raises:
        ValueError: the task has no proxy data.
    """
    choice = workload.scenario.fusion
    if choice is None:
        return None
    how = Distillation(epochs=choice.epochs, learning_rate=choice.learning_rate, temperature=choice.temperature)
    proxy = workload.task.data().proxy.inputs
    return Fusion(workload.fresh_model(), proxy, how, choice.combine, choice.every, workload.scenario.seed)


def publisher(
    workload: Workload,
    folder: RunFolder,
    on_search: OnSearch = lambda tier, step: None,
    clients: ClientModels | None = None,
) -> publish.Publisher | None:
    """Return the maker of the scenario's students; None: it has none.

    Args:
        workload: the scenario's work.
        folder: of the run; bundles go there.
        on_search: told the tier and how far the search for its student has come.
        clients: the client models of the last round, if they are to teach.
    """
    choice = workload.scenario.students
    if not choice.tiers:
        return None
    return publish.Publisher(
        workload.task,
        ModelStore(folder.bundles),
        [publish.Tier(tier.name, wanted(tier, choice)) for tier in choice.tiers],
        StudentPipeline(
            choice.prune.settings(0.5),  # tiers have ratios of their own
            choice.distill.settings(),
            Assistants(**choice.assistants.model_dump()) if choice.assistants else None,
            choice.quantize.settings(),
            choice.labels,
            _made_up(choice.data_free) if choice.data_free else None,
            Continuations(**choice.continuations.model_dump()) if choice.continuations else None,
        ),
        early=workload.fresh_model() if choice.prune.schedule == "lottery" else None,
        clients=clients,
        combine=choice.combine,
        signing_key=signing_key(choice),
        seed=workload.scenario.seed,
        on_search=on_search,
    )


def signing_key(choice: Students) -> bytes | None:
    """Return the key that a scenario's bundles are signed with; None: they are not.

    Raises:
        SigningKeyError: the file is absent, or holds no such key.
    """
    return None if choice.signing_key is None else signing.read_private(Path(choice.signing_key))


def wanted(tier: Tier, students: Students) -> StudentSpec:
    """Return which student a tier is to get."""
    if tier.ratio is not None:
        return StudentSpec(None, students.prune.settings(tier.ratio))
    search = Search(**students.search.model_dump()) if tier.student == "auto" else None
    return StudentSpec(tier_workload.budget(tier, students), None, tier_workload.start(tier), search)


def _made_up(choice: DataFreeChoice) -> DataFree:
    chosen = choice.model_dump(exclude={"recipe"}, exclude_none=True)
    return replace(RECIPES[choice.recipe], **chosen)
