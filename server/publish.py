"""Students of the global model: copy, prune, distil, quantise, bundle, publish; for each tier.

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
from fedpress.compression.models import bundle, data_free, distill, prune, quantize, search, teachers
from fedpress.compression.models.continuations import Continuations, continued
from fedpress.compression.models.data_free import DataFree
from fedpress.compression.models.search import Candidate, Search
from fedpress.compression.models.starts import Start, start_of
from fedpress.compression.models.student import Budget
from fedpress.compression.models.task import Examples, Task, evaluate
from fedpress.server.ensemble import ClientModels
from fedpress.server.store import ModelStore


class PublishError(FedpressError):
    """A bundle was made that does not hold what it should; it was not published."""


class NoProxyData(PublishError, ValueError):
    """The task holds out nothing that students could learn on."""


@dataclass(frozen=True)
class Tier:
    """A class of client devices, what its student may cost, and which model is pruned to that.

    Attributes:
        name: Of the tier.
        budget: Of its student.
        start: What is pruned, where nothing is searched for.
        search: How the student is looked for; None: `start` is pruned alike in every layer.
    """

    name: str
    budget: Budget
    start: Start = Start()
    search: Search | None = None


class Published(NamedTuple):
    """A student that was published.

    Attributes:
        tier: Whose it is.
        version: Of the global model that it was made from.
        parameters: How many it has.
        bundle_bytes: Size of its file, all of it counted.
        sha256: Of the file.
        teacher_accuracy: Of the global model, on test data; a fraction, as the next two.
        student_accuracy: Before quantisation.
        quantized_accuracy: After it.
        path: Of the file in the store.
        candidates: What was looked at for it, if it was searched for, the chosen one first.
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
    candidates: tuple[Candidate, ...] = ()


class _Made(NamedTuple):
    """A student that is distilled, its architecture if it is not the model's, and what was looked at to find it."""

    learner: nn.Module
    architecture: str | None
    candidates: tuple[Candidate, ...]


class Publisher:
    """Makes the students of a task and puts them into a store.

    Args:
        task: Whose proxy data the students learn on, and whose test data the figures reported are from.
        store: Where bundles are published.
        tiers: One student each, in this order.
        settings: Of the distillation.
        labels: Whether the students may see the labels of the proxy data; the settings may say of how many.
        clients: The client models of the last round; given, they teach the students together (FedDF), and the global
            model is what is pruned. Before the first step the global model teaches.
        combine: How their answers become one.
        made_up: How inputs are made up from the global model, in place of proxy data; None: they are not.
        continuations: How the global model goes on from proxy sequences, for the students to learn that too; None: it
            does not.
        seed: The same seed, version and model give the same bundle.
        on_search: Told the tier and how far the search for its student has come.
    """

    def __init__(
        self,
        task: Task,
        store: ModelStore,
        tiers: Sequence[Tier],
        settings: distill.Distillation = distill.DEFAULTS,
        *,
        labels: bool = False,
        clients: ClientModels | None = None,
        combine: teachers.Combine = "logits",
        made_up: DataFree | None = None,
        continuations: Continuations | None = None,
        seed: int = 0,
        on_search: Callable[[str, search.Step], None] = lambda tier, step: None,
    ) -> None:
        if made_up and (labels or continuations):
            raise ValueError("made-up inputs have no labels, and are no sequences to go on from; leave one of them out")
        self.task = task
        self.store = store
        self.tiers = tuple(tiers)
        self.settings = settings
        self.labels = labels
        self.clients = clients
        self.combine = combine
        self.made_up = made_up
        self.continuations = continuations
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
        if self.made_up:
            data_free.check(model, tuple(self._example.shape[1:]), self.made_up)
        elif len(proxy) == 0:
            raise NoProxyData(
                f"task {self.task.name!r} holds out no proxy data, which its students would learn on; they can learn on"
                " inputs made up from the model: students={data_free: deep-inversion} if it has batch norm, else"
                " data_free: dafl"
            )
        if self.continuations:
            continued(model, proxy[:1], self.continuations, seed=0)
        for tier in self.tiers:
            start_of(self.task, model, self._example, tier.budget, tier.start, seed=0)

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
        teacher_accuracy = evaluate(model, self.task, self.task.data().test).accuracy
        return [
            self._publish_one(
                tier,
                version,
                _Made(trained[tier.name], tier.start.architecture, ())
                if tier.name in trained
                else self._student(tier, version, model),
                teacher_accuracy,
            )
            for tier in self.tiers
        ]

    @property
    def _example(self) -> Tensor:
        """A batch of one input; of validation data, since there may be no proxy data."""
        return self.task.data().validation.inputs[:1]

    def _student(self, tier: Tier, version: int, model: nn.Module) -> _Made:
        """Return the tier's student, distilled; it starts from the global model, pruned, or from what the tier says."""
        seed = seeds.derive("distill", self.seed, version, tier.name)
        start = start_of(self.task, model, self._example, tier.budget, tier.start, seed=seed)
        inputs, targets = self._material(model, start, seed)
        teacher = self.clients.teacher(model, self.combine) if self.clients else model
        architecture = tier.start.architecture
        candidates: tuple[Candidate, ...] = ()
        if tier.search:
            start, architecture, candidates = search.search(
                model, self.task, tier.budget, tier.search, self.settings, teacher=teacher, inputs=inputs,
                targets=targets, seed=seed, progress=lambda step: self.on_search(tier.name, step),
            )  # fmt: skip
        learner = distill.distill(teacher, start, inputs, self.settings, targets=targets, seed=seed)
        return _Made(learner, architecture, candidates)

    def _material(self, model: nn.Module, start: nn.Module, seed: int) -> tuple[Tensor, Tensor | None]:
        """What a student learns on: inputs, and their labels as far as it may see them."""
        if self.made_up:
            shape = tuple(self._example.shape[1:])
            return data_free.synthesize(model, shape, self.made_up, student=start, seed=seed), None
        proxy: Examples = self.task.data().proxy
        if self.continuations is None:
            return proxy.inputs, proxy.targets if self.labels else None
        written = continued(model, proxy.inputs, self.continuations, seed=seed)
        given = proxy.targets if self.labels else torch.full_like(proxy.targets, distill.HIDDEN)
        return torch.cat([proxy.inputs, written.inputs]), torch.cat([given, written.targets])

    def _publish_one(self, tier: Tier, version: int, made: _Made, teacher_accuracy: float) -> Published:
        splits, learner = self.task.data(), made.learner
        weights = quantize.quantize(learner)
        quantized = quantize.applied(learner, weights)
        data = bundle.save(
            learner,
            weights,
            self._example,
            task=self.task.name,
            tier=tier.name,
            version=version,
            metrics={"validation_accuracy": round(evaluate(quantized, self.task, splits.validation).accuracy, 4)},
            architecture=made.architecture,
        )
        self._check(tier, data, quantized)
        return Published(
            tier=tier.name,
            version=version,
            parameters=prune.parameters_of(learner),
            bundle_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            teacher_accuracy=teacher_accuracy,
            student_accuracy=evaluate(learner, self.task, splits.test).accuracy,
            quantized_accuracy=evaluate(quantized, self.task, splits.test).accuracy,
            path=self.store.put(data, tier=tier.name, version=version),
            candidates=made.candidates,
        )

    def _check(self, tier: Tier, data: bytes, quantized: nn.Module) -> None:
        """Open the bundle as a client will: what clients get is what was evaluated, and within the budget."""
        most = tier.budget.bundle_bytes
        if most is not None and len(data) > most:
            raise PublishError(f"the bundle of tier {tier.name!r} has {len(data):,} bytes, its budget is {most:,}")
        rebuilt = bundle.rebuild(bundle.open_bundle(data), self.task)
        some = self.task.data().validation.inputs[:16]
        with torch.no_grad():
            same = torch.equal(rebuilt(some), quantized.eval()(some))
        if not same:
            raise PublishError(
                f"the student of tier {tier.name!r} answers otherwise once its bundle is opened again: does the model"
                f" of task {self.task.name!r} compute with something random that is not in its state dict?"
            )
