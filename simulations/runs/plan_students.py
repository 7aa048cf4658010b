"""From the students of a scenario to what makes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path

from fedpress.compression.errors import FedpressError
from fedpress.compression.models.bundles import signing
from fedpress.compression.models.bundles.writer import WriteBundle
from fedpress.compression.models.pruning import sparse_kernels
from fedpress.compression.models.step import SearchProgress, Step
from fedpress.compression.models.students import pipeline
from fedpress.server.fusion.client_ensemble import ClientModels, Fusion
from fedpress.server.publishing import publish
from fedpress.server.publishing.store import ModelStore
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import tier_workload
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario.students import OwnStep, Students, Tier
from fedpress.simulations.tasks import registry

OnSearch = Callable[[str, SearchProgress], None]


class StepError(FedpressError, ValueError):
    """A step of one's own cannot be made: no such module or attribute, or options that it does not take."""


def fusion(workload: Workload) -> Fusion | None:
    """Return how client models teach the global one; None: they do not.

    Raises:
        ValueError: The task has no proxy data.
    """
    settings = workload.scenario.fusion
    if settings is None:
        return None
    return Fusion(workload.fresh_model(), workload.task.data().proxy.inputs, settings, workload.scenario.seed)


def publisher(
    workload: Workload,
    folder: RunFolder,
    on_search: OnSearch = lambda tier, step: None,
    clients: ClientModels | None = None,
) -> publish.Publisher | None:
    """Return the maker of the scenario's students; None: it has none.

    Args:
        workload: The scenario's work.
        folder: Of the run; bundles go there.
        on_search: Told the tier and how far the search for its student has come.
        clients: The client models of the last round, if they are to teach.

    Raises:
        StepError: A step of one's own cannot be made.
    """
    students = workload.scenario.students
    if not students.tiers:
        return None
    return publish.Publisher(
        workload.task,
        ModelStore(folder.bundles),
        [
            publish.Tier(tier.name, steps(tier, students), tier.bundle_bytes, tier_workload.start(tier).architecture)
            for tier in students.tiers
        ],
        students.data,
        early=workload.fresh_model() if students.prune.schedule == "lottery" else None,
        clients=clients,
        combine=students.combine,
        seed=workload.scenario.seed,
        on_search=on_search,
    )


def steps(tier: Tier, students: Students) -> tuple[Step, ...]:
    """Return the steps in which a tier's student is made, down to its bundle.

    Args:
        tier: Whose it is.
        students: The section of the scenario.

    Raises:
        StepError: A step of one's own cannot be made.
        SigningKeyError: The file of the signing key is absent, or holds no such key.
    """
    built_in: dict[str, Iterable[Step]] = {
        "prune": [
            pipeline.initial(
                tier,
                tier_workload.start(tier),
                students.search if tier.student == "auto" else None,
                students.prune,
                students.distill,
                students.quantize,
            )
        ],
        "distill": [pipeline.learning(students.distill, students.assistants, students.prune)],
        "quantize": pipeline.writing(students.quantize, students.distill),
    }
    chosen: list[Step] = []
    for choice in students.finishing if tier.trains else students.steps:
        chosen += built_in[choice] if isinstance(choice, str) else [own_step(choice)]
    single_weights = tier.removed_fraction is not None and students.prune.granularity != "channels"
    if not tier.trains and (single_weights or students.quantize.sparsity):
        chosen.append(sparse_kernels.time_layers)
    return (*chosen, WriteBundle(students.quantize.onnx, signing_key(students)))


def own_step(choice: OwnStep) -> Step:
    """Return a step of one's own: an instance of a class, made with the options, or a function as it is.

    Args:
        choice: Which one, and its options.

    Raises:
        StepError: There is none, or it does not take these options.
    """
    name, _, attribute = choice.step.partition(":")
    place = f"students.steps: {choice.step}"
    try:
        module = registry.load_module(name, choice.folder)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise StepError(
            f"{place}: there is no module {name!r} in {choice.folder or Path.cwd()} or on the Python path; is the"
            " scenario beside the step's file?"
        ) from None
    step = getattr(module, attribute, None)
    if step is None:
        raise StepError(f"{place}: {module.__file__} has no {attribute!r}")
    if inspect.isclass(step):
        try:
            step = step(**choice.options)
        except (TypeError, ValueError) as error:
            raise StepError(f"{place}: {error}") from error
    elif choice.options:
        raise StepError(f"{place}: a function takes no options, got {', '.join(choice.options)}; write a class")
    if not callable(step):
        raise StepError(f"{place}: a {type(step).__name__} is no step, which is called with a student and materials")
    made: Step = step
    return made


def signing_key(students: Students) -> bytes | None:
    """Return the key that a scenario's bundles are signed with; None: they are not.

    Raises:
        SigningKeyError: The file is absent, or holds no such key.
    """
    return None if students.signing_key is None else signing.read_private(Path(students.signing_key))
