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
from torch import Tensor, nn

from fedpress.compression import seeds
from fedpress.compression.errors import FedpressError
from fedpress.compression.models.bundles import writer
from fedpress.compression.models.distillation import data_free, teachers
from fedpress.compression.models.distillation.sequence_level import continued
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.pruning.schedule import Step
from fedpress.compression.models.pruning.sparse_kernels import Timing
from fedpress.compression.models.students import pipeline, search
from fedpress.compression.models.students.initial_student import start_of
from fedpress.compression.models.students.pipeline import Stage, StudentArtifact, StudentPipeline, StudentSpec
from fedpress.compression.models.students.search import Candidate
from fedpress.compression.models.task import Task, evaluate
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
    """A class of client devices, and which student it gets."""

    name: str
    wanted: StudentSpec


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
        curve: The way of its pruning, where a ratio was asked for.
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
    stages: tuple[Stage, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    curve: tuple[Step, ...] = ()
    timings: tuple[Timing, ...] = ()
    warning: str = ""


class Publisher:
    """Makes the students of a task and puts them into a store.

    Args:
        task: Whose proxy data the students learn on, and whose test data the figures reported are from.
        store: Where bundles are published.
        tiers: One student each, in this order.
        how: What is done to make them.
        early: The global model before round 1, which lottery tickets are rewound to.
        clients: The client models of the last round; given, they teach the students together (FedDF), and the global
            model is what is pruned. Before the first step the global model teaches.
        combine: How their answers become one.
        signing_key: Ed25519, 32 bytes, that bundles are signed with.
        seed: The same seed, version and model give the same bundle.
        on_search: Told the tier and how far the search for its student has come.
    """

    def __init__(
        self,
        task: Task,
        store: ModelStore,
        tiers: Sequence[Tier],
        how: StudentPipeline = pipeline.DEFAULTS,
        *,
        early: nn.Module | None = None,
        clients: ClientModels | None = None,
        combine: teachers.Combine = "logits",
        signing_key: bytes | None = None,
        seed: int = 0,
        on_search: Callable[[str, search.Step], None] = lambda tier, step: None,
    ) -> None:
        self.task = task
        self.store = store
        self.tiers = tuple(tiers)
        self.how = how
        self.early = early
        self.clients = clients
        self.combine = combine
        self.signing_key = signing_key
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
            NoProxyData: The task holds out no proxy data, and none are to be made up.
            DataFreeError: None can be made up from this model.
            ValueError: The proxy data are no sequences that could be continued.
        """
        proxy = self.task.data().proxy.inputs
        if self.how.made_up:
            data_free.check(model, tuple(self._example.shape[1:]), self.how.made_up)
        elif len(proxy) == 0:
            raise NoProxyData(
                f"task {self.task.name!r} holds out no proxy data, which its students would learn on; they can learn on"
                " inputs made up from the model: students={data_free: deep-inversion} if it has batch norm, else"
                " data_free: dafl"
            )
        if self.how.continuations:
            continued(model, proxy[:1], self.how.continuations, seed=0)
        for tier in self.tiers:
            if tier.wanted.budget is not None:
                start_of(self.task, model, self._example, tier.wanted.budget, tier.wanted.start, seed=0)
            else:
                structural.keep_fraction(model, self._example, 1.0)  # it can be traced

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
        judge = pipeline.Judge(model, self.task, self.task.data().test)
        made = [self._made(tier, version, model, trained.get(tier.name), judge) for tier in self.tiers]
        return [self._publish_one(tier, version, one) for tier, one in zip(self.tiers, made, strict=True)]

    @property
    def _example(self) -> Tensor:
        """A batch of one input; of validation data, since there may be no proxy data."""
        return self.task.data().validation.inputs[:1]

    def _made(
        self, tier: Tier, version: int, model: nn.Module, trained: nn.Module | None, judge: pipeline.Judge
    ) -> StudentArtifact:
        seed = seeds.derive("distill", self.seed, version, tier.name)
        if trained is not None:
            architecture = tier.wanted.start.architecture
            return pipeline.finished(
                model, self.task, trained, self.how, architecture=architecture, judge=judge, seed=seed
            )
        return pipeline.make(
            model,
            self.task,
            tier.wanted,
            self.how,
            teacher=self.clients.teacher(model, self.combine) if self.clients else None,
            early=self.early,
            judge=judge,
            seed=seed,
            progress=lambda step: self.on_search(tier.name, step),
        )

    def _publish_one(self, tier: Tier, version: int, made: StudentArtifact) -> Published:
        splits = self.task.data()
        runnable = self._runnable(made.quantized) if self.how.quantization.onnx else None
        validation = evaluate(made.quantized, self.task, splits.validation).accuracy
        data = writer.save(
            made.student,
            made.tensors,
            self._example,
            task=self.task.name,
            tier=tier.name,
            version=version,
            metrics={"validation_accuracy": round(validation, 4)},
            architecture=made.architecture,
            onnx=runnable,
            private_key=self.signing_key,
        )
        self._check(tier, data, made.quantized)
        teacher, *_, learned, last = made.stages
        return Published(
            tier=tier.name,
            version=version,
            parameters=learned.parameters,
            bundle_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            teacher_accuracy=teacher.accuracy,
            student_accuracy=learned.accuracy,
            quantized_accuracy=last.accuracy,
            path=self.store.put(data, tier=tier.name, version=version),
            stages=(*made.stages[:-1], last._replace(size_bytes=len(data))),
            candidates=made.candidates,
            curve=made.curve,
            timings=made.timings,
            warning=made.bias.warning(WARN_OVER, least=20) or "",
        )

    def _runnable(self, student: nn.Module) -> bytes:
        """Return the student as int8 ONNX; ranges of activations are what is seen on proxy data."""
        from fedpress.compression.models.bundles import onnx_export  # needs a package that nothing else here does

        splits = self.task.data()
        seen = splits.proxy.inputs if len(splits.proxy.inputs) else splits.validation.inputs
        return onnx_export.quantize_static(onnx_export.export(student, self._example), seen[:512])

    def _check(self, tier: Tier, data: bytes, quantized: nn.Module) -> None:
        """Open the bundle as a client will: what clients get is what was evaluated, and within the budget."""
        most = tier.wanted.budget.bundle_bytes if tier.wanted.budget else None
        if most is not None and len(data) > most:
            raise PublishError(f"the bundle of tier {tier.name!r} has {len(data):,} bytes, its budget is {most:,}")
        rebuilt = writer.rebuild(writer.open_bundle(data), self.task)
        some = self.task.data().validation.inputs[:16]
        with torch.no_grad():
            same = torch.equal(rebuilt(some), quantized.eval()(some))
        if not same:
            raise PublishError(
                f"the student of tier {tier.name!r} answers otherwise once its bundle is opened again: does the model"
                f" of task {self.task.name!r} compute with something random that is not in its state dict?"
            )
