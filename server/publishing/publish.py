"""Publisher of students: for each tier, the steps from the global model to a bundle in the store.

The global model is only read, so publishing does not affect the rounds.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from fedpress.compression import seeds
from fedpress.compression.errors import FedpressError, NonFiniteError
from fedpress.compression.models import adapters, batch_dependence
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.bundles import bases, container, reader, writer
from fedpress.compression.models.bundles.bases import BaseFiles
from fedpress.compression.models.distillation import data_free, sequence_level, teachers
from fedpress.compression.models.distillation.settings import Combine, LearningData
from fedpress.compression.models.outputs import EvaluationError
from fedpress.compression.models.reproducible import reproducible
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
from fedpress.compression.models.students import initial_student, pipeline
from fedpress.compression.models.students.pipeline import StudentEvaluator
from fedpress.compression.models.task import Task, class_axis_of
from fedpress.server.fusion.client_ensemble import ClientModels
from fedpress.server.publishing.store import ModelStore

WARN_OVER = 0.1
"""Loss of accuracy of a class, as a fraction, beyond which a warning is given."""


class PublishError(FedpressError):
    """A bundle failed its check and was not published."""


class NoProxyData(PublishError, ValueError):
    """The task holds out no proxy data for students to learn on."""


@dataclass(frozen=True)
class PublishedTier:
    """A class of client devices, and the steps that make its student.

    Attributes:
        name: Name of the tier, which names its files.
        steps: Steps from the global model, or from the model that its clients have trained, to the bundle.
        most_bytes: Largest size of its bundle, in bytes; None: no limit.
        architecture: Student architecture of the model that its clients train; None: the task's own model.
        base: Pretrained weights that its devices have: the student is the model with its adapters as they were
            trained, and its bundle names the base; None: adapters are merged first, and the bundle is whole.
    """

    name: str
    steps: tuple[Step, ...]
    most_bytes: int | None = None
    architecture: str | None = None
    base: BaseFiles | None = None


class Published(NamedTuple):
    """A published student.

    Attributes:
        tier: Name of its tier.
        version: Version of the global model that it was made from.
        parameters: Number of parameters, of a sparse student without those outside its masks.
        bundle_bytes: Size of its file, in bytes.
        sha256: SHA-256 of the file, in hexadecimal.
        teacher_accuracy: Accuracy of the global model on test data, a fraction.
        student_accuracy: Accuracy of the student before quantization, a fraction.
        quantized_accuracy: Accuracy after quantization, a fraction.
        onnx_accuracy: Accuracy of the bundle's ONNX graph in ONNX Runtime, a fraction; None: it has none.
        path: Path of the file in the store.
        stages: Figures after each step.
        candidates: Architectures that a search evaluated, the chosen one first.
        curve: Steps of its pruning schedule.
        timings: Latencies of a sparse student's layers.
        warning: Warning of a class that loses too much accuracy; empty: none.
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
    onnx_accuracy: float | None = None


class Publisher:
    """Makes the students of a task and publishes them in a store.

    Args:
        task: Task that holds out proxy data for learning and test data for the reported figures.
        store: Store of the bundles.
        tiers: Tiers, one student each, in this order.
        data: Data that students learn on.
        early: Global model before round 1, to which lottery tickets are rewound.
        clients: Client models of the last round, which then teach the students as an ensemble (FedDF); the global model
            is still the one that is pruned, and the only teacher before the first round.
        combine: Combination of their answers.
        seed: Seed; equal seeds, versions and models give equal bundles.
        on_search: Called with a tier and the progress of the search for its student.
    """

    def __init__(
        self,
        task: Task,
        store: ModelStore,
        tiers: Sequence[PublishedTier],
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
        """Check before the first round that each tier's student can be made after the last.

        Args:
            model: Global model with any weights; left as it is.

        Raises:
            BudgetError: A tier's budget cannot be met.
            PruneError: The model cannot be pruned.
            UnknownArchitecture, UnsupportedLayer: The task lacks a tier's architecture, or the model has no removable
                blocks.
            NoProxyData: The task holds out no proxy data, and the settings synthesize no inputs.
            DataFreeError: No inputs can be synthesized from this model.
            PublishError: The model's answers to an input depend on the rest of its batch.
            TeacherError: The model returns several tensors, in training mode or always.
            OnnxError: A student cannot be exported to ONNX, or its graph answers otherwise.
            NoBase: A tier's devices have pretrained weights of which the model has none.
            ValueError: The proxy data are no sequences that could be continued.
        """
        with_adapters, model = model, self._plain(model)
        try:
            batch_dependence.require_independent(model, self.task.data().validation.inputs)
        except EvaluationError as error:
            raise PublishError(f"no student for devices, which ask for one answer at a time: {error}") from error
        with reproducible(0):  # early exits and the like, which only training has
            few = batch_dependence.several(model_inputs.first(self.task.data().validation.inputs, 2))
            teachers.by_class(model_inputs.call(copy.deepcopy(model).train(), few))
        proxy = self.task.data().proxy.inputs
        if self.data.data_free:
            data_free.check(model, data_free.shape_of(self.task.data().validation.inputs), self.data.data_free)
        elif model_inputs.count(proxy) == 0 and not self._as_trained:
            raise NoProxyData(
                f"task {self.task.name!r} holds out no proxy data, which its students would learn on; they can learn on"
                " inputs made from the model: students.data={data_free: deep-inversion} if it has batch norm, else"
                " data_free: dafl"
            )
        if self.data.continuations:
            sequence_level.continued(model, model_inputs.subset(proxy, slice(0, 1)), self.data.continuations, seed=0)
        for tier in self.tiers:
            given = model if tier.base is None else with_adapters
            if tier.architecture is not None and not pipeline.makes_form(tier.steps):  # the one that clients train
                given = adapters.merged(initial_student.fresh(self.task, tier.architecture, seed=0))
            pipeline.check(tier.steps, given, self.task)

    def publish(
        self, version: int, model: nn.Module, trained: Mapping[str, nn.Module] = MappingProxyType({})
    ) -> list[Published]:
        """Make and publish one student for each tier.

        Adapters are merged into the model first (`adapters.merged`), unless a tier's devices have the base.

        Args:
            version: Version of the global model.
            model: Global model; left as it is.
            trained: Models by tier that the tier's clients have trained, which are then the students before the steps.

        Raises:
            BudgetError: A tier's budget cannot be met.
            PruneError: The model cannot be pruned.
            NonFiniteError: The training of a student diverged.
            PublishError: A bundle, opened again, differs from its student, or exceeds its budget.
            StoreError: The version is published already, with other bytes.
        """
        evaluator = StudentEvaluator(self._plain(model), self.task, self.task.data().test)
        students = [self._make(tier, version, model, trained.get(tier.name), evaluator) for tier in self.tiers]
        return [
            self._publish_one(tier, version, student, evaluator)
            for tier, student in zip(self.tiers, students, strict=True)
        ]

    def _plain(self, model: nn.Module) -> nn.Module:
        """Return the model with its adapters merged, if there are students that are made of it."""
        return model if self._as_trained else adapters.merged(model)

    @property
    def _as_trained(self) -> bool:
        """Whether nothing is made of the model but files of it as it is."""
        return bool(self.tiers) and all(tier.base for tier in self.tiers)

    def _make(
        self,
        tier: PublishedTier,
        version: int,
        model: nn.Module,
        trained: nn.Module | None,
        evaluator: StudentEvaluator,
    ) -> Student:
        seed = seeds.derive("distill", self.seed, version, tier.name)
        with_adapters, model = model, model if self._as_trained else _learning(adapters.merged(model))
        trained = None if trained is None else _learning(adapters.merged(trained))
        inputs, targets = pipeline.inputs_for(tier.steps, model, self.task, self.data, trained=trained, seed=seed)
        known = class_axis_of(model, self.task)
        axis = teachers.LAST if known is None else known
        ensemble = self.clients.teacher(with_adapters, self.combine, axis) if self.clients and trained is None else None
        materials = Materials(
            model=model,
            task=self.task,
            inputs=inputs,
            targets=targets,
            teacher=ensemble or teachers.of(model, axis),
            seed=seed,
            tier=tier.name,
            version=version,
            early=None if self.early is None else self._plain(self.early),
            progress=lambda progress: self.on_search(tier.name, progress),
        )
        student = Student(model if tier.base is None else with_adapters)
        if trained is not None:
            student = Student(trained, tier.architecture, step="trained")
        if ensemble is None:
            return pipeline.run(tier.steps, student, materials, evaluator)
        try:
            return pipeline.run(tier.steps, student, materials, evaluator)
        except (NonFiniteError, teachers.TeacherError) as error:
            # One client's model must not cost the students.
            getLogger("flwr").error(
                "student %s cannot learn from the clients' models, and learns from the global one: %s", tier.name, error
            )
            materials = replace(materials, teacher=teachers.of(model))
            return pipeline.run(tier.steps, student, materials, evaluator)

    def _publish_one(
        self, tier: PublishedTier, version: int, student: Student, evaluator: StudentEvaluator
    ) -> Published:
        if student.bundle is None or student.bias is None:
            raise PublishError(
                f"the steps of tier {tier.name!r} write no bundle: put writer.WriteBundle after quantize.Quantize"
            )
        graph = self._check(tier, student.bundle, student.model)
        as_onnx = None if graph is None else _stage_of(graph, student.stages[-1], evaluator)
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
            stages=student.stages if as_onnx is None else (*student.stages, as_onnx),
            candidates=student.candidates,
            curve=student.curve,
            timings=student.timings,
            warning=student.bias.warning(WARN_OVER, least=20) or "",
            onnx_accuracy=None if as_onnx is None else as_onnx.accuracy,
        )

    def _check(self, tier: PublishedTier, data: bytes, quantized: nn.Module) -> bytes | None:
        """Return the bundle's ONNX model, after checking that the bundle, opened as a client will, holds the student.

        It must give the student that was evaluated, and be within the budget.
        """
        if tier.most_bytes is not None and len(data) > tier.most_bytes:
            raise PublishError(
                f"the bundle of tier {tier.name!r} has {len(data):,} bytes, its budget is {tier.most_bytes:,}"
            )
        opened = reader.open_bundle(data, limit=container.MAX_BYTES)
        if tier.base is not None:
            opened = bases.assembled(opened, tier.base.path)
        rebuilt = writer.rebuild(opened, self.task)
        inputs = model_inputs.first(self.task.data().validation.inputs, 16)
        with torch.no_grad():
            answers, expected = (
                model_outputs.tensors(model_inputs.call(each.eval(), inputs)) for each in (rebuilt, quantized)
            )
            same = len(answers) == len(expected) and all(map(torch.equal, answers, expected))
        if not same:
            raise PublishError(
                f"the student of tier {tier.name!r} answers otherwise once its bundle is opened again: does the model"
                f" of task {self.task.name!r} compute with something random that is not in its state dict?"
            )
        if opened.onnx is None:
            return None
        from fedpress.compression.models.bundles import onnx_weights  # needs an optional package

        return onnx_weights.filled(opened.onnx, opened.weights)


def _learning(model: nn.Module) -> nn.Module:
    """Return a model all of whose weights can be trained: itself, or a copy where clients trained a part of it.

    A student is another model than the one that clients left frozen in part: what is removed anywhere is made up for
    anywhere.
    """
    weights = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    if all(parameter.requires_grad for parameter in weights):
        return model
    whole = copy.deepcopy(model)
    for parameter in whole.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return whole


def _stage_of(graph: bytes, student: StageResult, evaluator: StudentEvaluator) -> StageResult:
    """Return the figures of an ONNX model, in ONNX Runtime as on a device.

    Args:
        graph: Bytes of the model.
        student: Figures of the student that it was made from.
        evaluator: Evaluation on test data.
    """
    from fedpress.compression.models.bundles import onnx_export  # needs an optional package

    stage, _ = evaluator.stage("onnx", onnx_export.Graph(graph))
    return replace(stage, parameters=student.parameters, size_bytes=len(graph))
