"""Students of the global model: copy, prune, distil, quantise, bundle, publish; for each tier.

The global model is only read, so publishing resets nothing and the rounds go on as if it had not happened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from fedpress.compression import seeds
from fedpress.compression.errors import FedpressError
from fedpress.compression.models import bundle, distill, prune, quantize, student, teachers
from fedpress.compression.models.task import Task, evaluate
from fedpress.server.ensemble import ClientModels
from fedpress.server.store import ModelStore


class PublishError(FedpressError):
    """A bundle was made that does not hold what it should; it was not published."""


@dataclass(frozen=True)
class Tier:
    """A class of client devices and what its student may cost."""

    name: str
    budget: student.Budget


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
        seed: The same seed, version and model give the same bundle.
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
        seed: int = 0,
    ) -> None:
        self.task = task
        self.store = store
        self.tiers = tuple(tiers)
        self.settings = settings
        self.labels = labels
        self.clients = clients
        self.combine = combine
        self.seed = seed

    def check(self, model: nn.Module) -> None:
        """Find out before the first round what would otherwise fail after the last: can each tier's student be made?

        Args:
            model: The global model, with any weights; left as it is.

        Raises:
            BudgetError: A tier's budget cannot be met.
            PruneError: The model cannot be pruned.
            PublishError: The task's targets are sequences, which distillation does not know.
            ValueError: The task holds out no proxy data.
        """
        example, targets = self.task.data().proxy.inputs[:1], self.task.data().proxy.targets
        if targets.ndim > 1:
            raise PublishError(
                f"task {self.task.name!r} has sequences of {targets.shape[1:].numel()} labels as targets, and students"
                " are made for one label an example only; leave them out: students={tiers: []}"
            )
        if len(example) == 0:
            raise ValueError(f"task {self.task.name!r} holds out no proxy data, which its students would learn on")
        for tier in self.tiers:
            student.student_of(model, example, tier.budget)

    def publish(self, version: int, model: nn.Module) -> list[Published]:
        """Make and publish one student for each tier from the global model, which is left as it is.

        Raises:
            BudgetError: A tier's budget cannot be met.
            PruneError: The model cannot be pruned.
            NonFiniteError: A student diverged.
            PublishError: A bundle, opened again, is not the student that it was made from.
            StoreError: The version is published already, with other bytes.
        """
        teacher_accuracy = evaluate(model, self.task, self.task.data().test).accuracy
        return [self._publish_one(tier, version, model, teacher_accuracy) for tier in self.tiers]

    def _publish_one(self, tier: Tier, version: int, model: nn.Module, teacher_accuracy: float) -> Published:
        splits = self.task.data()
        example = splits.proxy.inputs[:1]
        learner = distill.distill(
            self.clients.teacher(model, self.combine) if self.clients else model,
            student.student_of(model, example, tier.budget),
            splits.proxy.inputs,
            self.settings,
            targets=splits.proxy.targets if self.labels else None,
            seed=seeds.derive("distill", self.seed, version, tier.name),
        )
        weights = quantize.quantize(learner)
        quantized = quantize.quantized_copy(learner)
        data = bundle.save(
            learner,
            weights,
            example,
            task=self.task.name,
            tier=tier.name,
            version=version,
            metrics={"validation_accuracy": round(evaluate(quantized, self.task, splits.validation).accuracy, 4)},
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
