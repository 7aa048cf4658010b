"""Publisher, pipelines and fusion for the students of a scenario."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path

from fedpress.compression import safetensors_files
from fedpress.compression.errors import FedpressError
from fedpress.compression.models.bundles import signing
from fedpress.compression.models.bundles.bases import BaseFiles
from fedpress.compression.models.bundles.writer import WriteBundle
from fedpress.compression.models.distillation import teachers
from fedpress.compression.models.pruning import sparse_kernels
from fedpress.compression.models.quantization.quantize import Quantize
from fedpress.compression.models.step import SearchProgress, Step
from fedpress.compression.models.students import pipeline
from fedpress.compression.models.task import class_axis_of
from fedpress.server.fusion.client_ensemble import ClientModels, Fusion
from fedpress.server.publishing import publish
from fedpress.server.publishing.store import ModelStore
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import tier_workload
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario.students import ADAPTER, OwnStep, Students, Tier
from fedpress.simulations.tasks import registry

OnSearch = Callable[[str, SearchProgress], None]


class StepError(FedpressError, ValueError):
    """A custom step cannot be made: no such module or attribute, or options that it does not take."""


def fusion(workload: Workload) -> Fusion | None:
    """Return the fusion of client models into the global one (FedDF); None: the scenario has none.

    Raises:
        ValueError: The task has no proxy data.
    """
    settings = workload.scenario.fusion
    if settings is None:
        return None
    model, inputs = workload.fresh_model(), workload.task.data().proxy.inputs
    axis = class_axis_of(model, workload.task)
    return Fusion(model, inputs, settings, workload.scenario.seed, teachers.LAST if axis is None else axis)


def publisher(
    workload: Workload,
    folder: RunFolder,
    on_search: OnSearch = lambda tier, step: None,
    clients: ClientModels | None = None,
) -> publish.Publisher | None:
    """Return the publisher of the scenario's students; None: it has no tiers.

    Args:
        workload: Work on the global model.
        folder: Of the run; gets the bundles.
        on_search: Called with a tier and the progress of the search for its student.
        clients: The client models of the last round, if they teach.

    Raises:
        StepError: A custom step cannot be made.
    """
    students = workload.scenario.students
    if not students.tiers:
        return None
    chosen, path = workload.scenario.base, workload.base
    base = BaseFiles(path, safetensors_files.sha256(path)) if chosen and path else None
    return publish.Publisher(
        workload.task,
        ModelStore(folder.bundles),
        [
            publish.PublishedTier(
                tier.name,
                steps(tier, students, base if tier.student == ADAPTER else None),
                tier.bundle_bytes,
                tier_workload.start(tier).architecture,
                base if tier.student == ADAPTER else None,
            )
            for tier in students.tiers
        ],
        students.data,
        early=workload.fresh_model() if students.prune.schedule == "lottery" else None,
        clients=clients,
        combine=students.combine,
        seed=workload.scenario.seed,
        on_search=on_search,
    )


def steps(tier: Tier, students: Students, base: BaseFiles | None = None) -> tuple[Step, ...]:
    """Return the steps that make a tier's student, the last of which writes its bundle.

    Args:
        tier: The tier.
        students: Section of the scenario.
        base: Pretrained weights that the tier's devices have: nothing is pruned or distilled; None: they have none.

    Raises:
        StepError: A custom step cannot be made.
        SigningKeyError: The file of the signing key is absent, or holds no Ed25519 private key.
    """
    if base is not None:
        return _of_adapter(students, base)
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


def _of_adapter(students: Students, base: BaseFiles) -> tuple[Step, ...]:
    """Return the steps of a student that is what was trained: steps of the user's own, quantization, the bundle."""
    chosen: list[Step] = []
    for choice in students.steps:
        if choice == "quantize":
            chosen.append(Quantize(students.quantize, base.path))
        elif not isinstance(choice, str):
            chosen.append(own_step(choice))
    return (*chosen, WriteBundle(students.quantize.onnx, signing_key(students), base))


def own_step(choice: OwnStep) -> Step:
    """Return a custom step: an instance of a class, made with the options, or a function as it is.

    Raises:
        StepError: There is no such module or attribute, or it does not take these options.
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
    """Return the private key that bundles are signed with; None: they are not signed.

    Raises:
        SigningKeyError: The file is absent, or holds no Ed25519 private key.
    """
    return None if students.signing_key is None else signing.read_private(Path(students.signing_key))
