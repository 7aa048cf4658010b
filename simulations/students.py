"""From the students of a scenario to the settings of what makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedpress.compression.models import signing
from fedpress.compression.models.assistant import Assistants
from fedpress.compression.models.chain import Chain, Wanted
from fedpress.compression.models.continuations import Continuations
from fedpress.compression.models.data_free import RECIPES, DataFree
from fedpress.compression.models.distill import Distillation
from fedpress.compression.models.search import Search, Step
from fedpress.server import publish
from fedpress.server.ensemble import ClientModels, Fusion
from fedpress.server.store import ModelStore
from fedpress.simulations import tier_workload
from fedpress.simulations.run_folder import RunFolder
from fedpress.simulations.student_sections import DataFreeChoice, Students, Tier
from fedpress.simulations.workload import Workload

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
        Chain(
            choice.prune.settings(0.5),  # tiers have ratios of their own
            choice.distil.settings(),
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


def wanted(tier: Tier, students: Students) -> Wanted:
    """Return which student a tier is to get."""
    if tier.ratio is not None:
        return Wanted(None, students.prune.settings(tier.ratio))
    search = Search(**students.search.model_dump()) if tier.student == "auto" else None
    return Wanted(tier_workload.budget(tier, students), None, tier_workload.start(tier), search)


def _made_up(choice: DataFreeChoice) -> DataFree:
    chosen = choice.model_dump(exclude={"recipe"}, exclude_none=True)
    return replace(RECIPES[choice.recipe], **chosen)
