"""Students of the global model: copy, prune, distill, quantize, bundle, publish; for each tier.

The global model is only read, so publishing resets nothing and the rounds go on as if it had not happened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from fedpress.compression import seeds
from fedpress.compression.errors import FedpressError
from fedpress.compression.models.bundles import reader, writer
from fedpress.compression.models.distillation import data_free, sequence_level, teachers
from fedpress.compression.models.distillation.settings import Combine, LearningData
from fedpress.compression.models.step import (
    CandidateResult,
    LayerTiming,
    Materials,
    PruningStep,
    SearchProgress,
    StageResult,
    Step,
    Student,
)
from fedpress.compression.models.students import pipeline
from fedpress.compression.models.students.pipeline import StudentEvaluator
from fedpress.compression.models.task import Task
from fedpress.server.fusion.client_ensemble import ClientModels
from fedpress.server.publishing.store import ModelStore

WARN_OVER = 0.1
"""A class that loses more than this fraction is warned of."""


class PublishError(FedpressError):
    """A bundle was made that does not hold what it should; it was not published."""


class NoProxyData(PublishError, ValueError):
    """The task holds out nothing that students could learn on."""


@dataclass(frozen=True)
class Tier:
    """A class of client devices, and how its student is made.

    Attributes:
        name: Names its files.
        steps: In their order, from the global model, or from the model that its clients have trained, to the bundle.
        most_bytes: The largest bundle that it may get; None: any.
        architecture: Of the task's student architectures, of a model that its clients train; None: the task's own.
    """

    name: str
    steps: tuple[Step, ...]
    most_bytes: int | None = None
    architecture: str | None = None


class Published(NamedTuple):
    """A student that was published.

    Attributes:
        tier: Whose it is.
        version: Of the global model that it was made from.
        parameters: How many it has; of a sparse one, those that are left.
        bundle_bytes: Size of its file, all of it counted.
        sha256: Of the file.
        teacher_accuracy: Of the global model, on test data; a fraction, as the next two.
        student_accuracy: Before quantization.
        quantized_accuracy: After it.
        path: Of the file in the store.
        stages: What each step of the making did.
        candidates: What was looked at for it, if it was searched for, the chosen one first.
        curve: The way of its pruning, where a part of the parameters was to be removed.
        timings: Of a sparse student's layers.
        warning: Which class it loses too much on; empty: none.
    """

    tier: str
    version: int
    parameters: int
    bundle_bytes: int
    sha256: str
    teacher_accuracy: float
    student_accuracy: float
    quantized_accuracy: float
    path: Path
    stages: tuple[StageResult, ...] = ()
    candidates: tuple[CandidateResult, ...] = ()
    curve: tuple[PruningStep, ...] = ()
    timings: tuple[LayerTiming, ...] = ()
    warning: str = ""


class Publisher:
    """Makes the students of a task and puts them into a store.

    Args:
        task: Whose proxy data the students learn on, and whose test data the figures reported are from.
        store: Where bundles are published.
        tiers: One student each, in this order.
        data: What they learn on.
        early: The global model before round 1, which lottery tickets are rewound to.
        clients: The client models of the last round; given, they teach the students together (FedDF), and the global
            model is what is pruned. Before the first step the global model teaches.
        combine: How their answers become one.
        seed: The same seed, version and model give the same bundle.
        on_search: Told the tier and how far the search for its student has come.
    """

    def __init__(
        self,
        task: Task,
        store: ModelStore,
        tiers: Sequence[Tier],
        data: LearningData = LearningData(),
        *,
        early: nn.Module | None = None,
        clients: ClientModels | None = None,
        combine: Combine = "logits",
        seed: int = 0,
        on_search: Callable[[str, SearchProgress], None] = lambda tier, progress: None,
    ) -> None:
        self.task = task
        self.store = store
        self.tiers = tuple(tiers)
        self.data = data
        self.early = early
        self.clients = clients
        self.combine = combine
        self.seed = seed
        self.on_search = on_search

    def check(self, model: nn.Module) -> None:
        """Find out before the first round what would otherwise fail after the last: can each tier's student be made?

        Args:
            model: The global model, with any weights; left as it is.

        Raises:
            BudgetError: A tier's budget cannot be met.
            PruneError: The model cannot be pruned.
            UnknownArchitecture, UnsupportedLayer: A tier's student is no architecture of the task, or has no layers
                that may be dropped.
            NoProxyData: The task holds out no proxy data, and no inputs are to be made.
            DataFreeError: No inputs can be made from this model.
            ValueError: The proxy data are no sequences that could be continued.
        """
        proxy = self.task.data().proxy.inputs
        if self.data.data_free:
            data_free.check(model, tuple(self.task.data().validation.inputs.shape[1:]), self.data.data_free)
        elif len(proxy) == 0:
            raise NoProxyData(
                f"task {self.task.name!r} holds out no proxy data, which its students would learn on; they can learn on"
                " inputs made from the model: students.data={data_free: deep-inversion} if it has batch norm, else"
                " data_free: dafl"
            )
        if self.data.continuations:
            sequence_level.continued(model, proxy[:1], self.data.continuations, seed=0)
        for tier in self.tiers:
            pipeline.check(tier.steps, model, self.task)

    def publish(
        self, version: int, model: nn.Module, trained: Mapping[str, nn.Module] = MappingProxyType({})
    ) -> list[Published]:
        """Make and publish one student for each tier from the global model, which is left as it is.

        Args:
            version: Of the global model.
            model: The global model.
            trained: Models by tier that its clients have trained themselves: these are the students, as they are.

        Raises:
            BudgetError: A tier's budget cannot be met.
            PruneError: The model cannot be pruned.
            NonFiniteError: A student diverged.
            PublishError: A bundle, opened again, is not the student that it was made from.
            StoreError: The version is published already, with other bytes.
        """
        evaluator = StudentEvaluator(model, self.task, self.task.data().test)
        students = [self._made(tier, version, model, trained.get(tier.name), evaluator) for tier in self.tiers]
        return [self._publish_one(tier, version, student) for tier, student in zip(self.tiers, students, strict=True)]

    def _made(
        self, tier: Tier, version: int, model: nn.Module, trained: nn.Module | None, evaluator: StudentEvaluator
    ) -> Student:
        seed = seeds.derive("distill", self.seed, version, tier.name)
        inputs, targets = pipeline.inputs_for(tier.steps, model, self.task, self.data, trained=trained, seed=seed)
        ensemble = self.clients.teacher(model, self.combine) if self.clients and trained is None else None
        materials = Materials(
            model=model,
            task=self.task,
            inputs=inputs,
            targets=targets,
            teacher=ensemble or teachers.of(model),
            seed=seed,
            tier=tier.name,
            version=version,
            early=self.early,
            progress=lambda progress: self.on_search(tier.name, progress),
        )
        student = Student(model) if trained is None else Student(trained, tier.architecture, step="trained")
        return pipeline.run(tier.steps, student, materials, evaluator)

    def _publish_one(self, tier: Tier, version: int, student: Student) -> Published:
        if student.bundle is None or student.bias is None:
            raise PublishError(
                f"the steps of tier {tier.name!r} write no bundle: put writer.WriteBundle after quantize.Quantize"
            )
        self._check(tier, student.bundle, student.model)
        teacher, learned, last = student.stages[0], student.stages[-2], student.stages[-1]
        return Published(
            tier=tier.name,
            version=version,
            parameters=learned.parameters,
            bundle_bytes=len(student.bundle),
            sha256=hashlib.sha256(student.bundle).hexdigest(),
            teacher_accuracy=teacher.accuracy,
            student_accuracy=learned.accuracy,
            quantized_accuracy=last.accuracy,
            path=self.store.put(student.bundle, tier=tier.name, version=version),
            stages=student.stages,
            candidates=student.candidates,
            curve=student.curve,
            timings=student.timings,
            warning=student.bias.warning(WARN_OVER, least=20) or "",
        )

    def _check(self, tier: Tier, data: bytes, quantized: nn.Module) -> None:
        """Open the bundle as a client will: what clients get is what was evaluated, and within the budget."""
        if tier.most_bytes is not None and len(data) > tier.most_bytes:
            raise PublishError(
                f"the bundle of tier {tier.name!r} has {len(data):,} bytes, its budget is {tier.most_bytes:,}"
            )
        rebuilt = writer.rebuild(reader.open_bundle(data), self.task)
        inputs = self.task.data().validation.inputs[:16]
        with torch.no_grad():
            same = torch.equal(rebuilt(inputs), quantized.eval()(inputs))
        if not same:
            raise PublishError(
                f"the student of tier {tier.name!r} answers otherwise once its bundle is opened again: does the model"
                f" of task {self.task.name!r} compute with something random that is not in its state dict?"
            )
