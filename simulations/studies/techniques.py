"""Study of distillation techniques: `python -m fedpress.simulations.studies.distillation digits --techniques`.

Every student has the same size and starts from the same pruned weights; each technique stands beside the one that it is
compared with, which differs in that technique only. Accuracies are on test data, which no choice was made by. Figures
and reading: docs/results/students.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fedpress.compression.models import class_accuracy
from fedpress.compression.models.distillation import teacher_assistants, teachers
from fedpress.compression.models.distillation.distill import distill
from fedpress.compression.models.distillation.settings import Assistants, Combine, Distillation, LossWeights
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.step import Teacher
from fedpress.compression.models.task import Examples, Task, evaluate
from fedpress.server.app import Plan
from fedpress.server.fusion.client_ensemble import ClientModels, Fusion
from fedpress.server.fusion.settings import FedDF
from fedpress.simulations.runs import runner
from fedpress.simulations.scenario.scenario import Scenario

IMBALANCE = 20
"""Of the long-tailed proxy data: examples of the commonest class over those of the rarest."""


class Outcome(NamedTuple):
    """Result of one technique, the mean over the seeds.

    Attributes:
        part: Of the study: techniques of a part are compared with its first.
        technique: Its name.
        accuracy: On test data.
        deviation: Of that, over the seeds.
        worst: What the class that loses most loses against the teacher, on test data.
        agreement: Part of the training inputs on which the answer is the teacher's.
        seconds: To make one student.
    """

    part: str
    technique: str
    accuracy: float
    deviation: float
    worst: float
    agreement: float
    seconds: float


Make = Callable[[int], nn.Module]
"""Makes a student from a seed."""


@dataclass(frozen=True)
class Lab:
    """A teacher and the means to make students.

    Attributes:
        task: The task.
        teacher: The trained teacher.
        parameters: Budget of the students.
        settings: Distillation of the plain student, from the teacher's outputs alone.
    """

    task: Task
    teacher: nn.Module
    parameters: int
    settings: Distillation

    @cached_property
    def pruned(self) -> nn.Module:
        """The initial student."""
        return self.smaller(self.parameters)

    def smaller(self, parameters: int) -> nn.Module:
        """Return the teacher, pruned to a number of parameters."""
        return structural.prune_to(self.teacher, self.task.data().proxy.inputs[:1], parameters)

    def student(
        self,
        seed: int,
        *,
        proxy: Examples | None = None,
        teacher: nn.Module | Teacher | None = None,
        labels: bool = False,
        **changes: Any,
    ) -> nn.Module:
        """Return a distilled student.

        Args:
            seed: Seed of the distillation.
            proxy: Examples to distill on; None: the task's proxy data.
            teacher: Another teacher; None: the lab's.
            labels: Whether the labels of the examples are used.
            **changes: Changes of the settings.
        """
        examples = proxy or self.task.data().proxy
        return distill(
            teacher or self.teacher,
            self.pruned,
            examples.inputs,
            replace(self.settings, **changes),
            targets=examples.targets if labels else None,
            seed=seed,
        )

    def through(self, seed: int, dense: bool) -> nn.Module:
        """Return a student distilled by way of teacher assistants.

        Args:
            seed: Seed of the distillation.
            dense: Whether each assistant learns from all larger models.
        """
        return teacher_assistants.distill_through(
            self.teacher,
            self.pruned,
            self.task.data().proxy.inputs,
            self.settings,
            Assistants(dense=dense),
            parameters=structural.parameters_of(self.teacher),
            make=self.smaller,
            seed=seed,
        )

    def judged(
        self, part: str, techniques: dict[str, Make], seeds: int, reference: Make | None = None
    ) -> Iterator[Outcome]:
        """Yield the outcome of each technique.

        Args:
            part: Name of the part of the study.
            techniques: Functions that make a student from a seed, by name.
            seeds: Number of students of each technique.
            reference: Makes the teacher to compare with from a seed; None: the lab's teacher.
        """
        splits = self.task.data()
        many = splits.train.inputs[:10_000]
        of = [reference(seed) if reference else self.teacher for seed in range(seeds)]
        for name, make in techniques.items():
            began = perf_counter()
            students = [make(seed) for seed in range(seeds)]
            seconds = (perf_counter() - began) / seeds
            accuracies = [evaluate(student, self.task, splits.test).accuracy for student in students]
            pairs = list(zip(of, students, strict=True))
            worst = [class_accuracy.compare(*pair, self.task, splits.test).worst.lost for pair in pairs]
            agree = [float((answered(first, many) == answered(second, many)).float().mean()) for first, second in pairs]
            yield Outcome(
                part,
                name,
                float(np.mean(accuracies)),
                float(np.std(accuracies)),
                float(np.mean(worst)),
                float(np.mean(agree)),
                seconds,
            )


def study(lab: Lab, seeds: int, federations: Mapping[str, Scenario], parts: Collection[str] = ()) -> Iterator[Outcome]:
    """Yield the outcome of each technique when it is complete.

    Args:
        lab: Teacher and students.
        seeds: Number of students of each technique.
        federations: Scenarios whose client models teach, by name of the part.
        parts: Parts of the study; empty: all.
    """
    yield from lab.judged("teacher", {"teacher": lambda _: lab.teacher}, 1)
    for part, techniques in central(lab).items():
        if not parts or part in parts:
            yield from lab.judged(part, techniques, seeds)
    for part, scenario in federations.items():
        if not parts or part in parts:
            yield from with_clients(lab, part, scenario, seeds)


def central(lab: Lab) -> dict[str, dict[str, Make]]:
    """Return the techniques of each part with a centrally trained teacher; the first of each is the baseline."""
    make = partial(partial, lab.student)
    alone = LossWeights(teacher=0.0, labels=1.0)
    own_past = replace(alone, mean_teacher=1.0)
    tail = long_tailed(lab.task.data().proxy)
    return {
        "loss": {
            "answers (KL) alone": make(),
            "features (FitNets)": make(weights=LossWeights(features=0.1)),
            "attention transfer": make(weights=LossWeights(attention_transfer=10.0)),
            "early exits": make(weights=LossWeights(early_exits=0.3)),
            "noise on the inputs": make(noise=0.05),
            "own past (mean teacher)": make(weights=LossWeights(mean_teacher=1.0)),
            "own past, noise": make(weights=LossWeights(mean_teacher=1.0), noise=0.05),
            "assistants, a chain": partial(lab.through, dense=False),
            "assistants, dense": partial(lab.through, dense=True),
        },
        "labels": {
            "no labels, teacher": make(),
            "100 labels, teacher": make(labels=True, labeled=100),
            "all labels, teacher": make(labels=True),
            "100 labels, no teacher": make(labels=True, labeled=100, weights=alone),
            "100 labels, own past": make(labels=True, labeled=100, weights=own_past, noise=0.05),
            "all labels, no teacher": make(labels=True, weights=alone),
        },
        "long tail": {
            "answers (KL) alone": make(proxy=tail),
            "reweighted": make(proxy=tail, balance="reweight"),
            "resampled": make(proxy=tail, balance="resample"),
        },
    }


def long_tailed(examples: Examples, imbalance: float = IMBALANCE) -> Examples:
    """Return long-tailed examples: class c keeps imbalance^(-c / (classes - 1)) of its own.

    Args:
        examples: Balanced examples.
        imbalance: Size of the largest class over that of the smallest.
    """
    classes, counts = torch.unique(examples.targets, return_counts=True)
    keep = [
        torch.nonzero(examples.targets == label)[: max(1, int(count * imbalance ** (-index / (len(classes) - 1))))]
        for index, (label, count) in enumerate(zip(classes, counts, strict=True))
    ]
    return examples.take(torch.cat(keep).flatten().sort().values)


class Federated(NamedTuple):
    """A run's global model, its last round's client models, and its accuracy (mean of the last 10 rounds)."""

    model: nn.Module
    clients: ClientModels
    accuracy: float


def with_clients(lab: Lab, part: str, scenario: Scenario, seeds: int) -> Iterator[Outcome]:
    """Yield outcomes of FedDF: students of the ensemble of client models, and a global model refined by it.

    Args:
        lab: Task and initial student.
        part: Name of the part of the study.
        scenario: The federation.
        seeds: Number of runs.
    """
    proxy = lab.task.data().proxy.inputs
    fusion = Fusion(lab.task.model(), proxy, FedDF(epochs=5, learning_rate=1e-3, temperature=1.0))
    runs = []
    for name, fused in (("global model", None), ("global model, fused each round", fusion)):
        began = perf_counter()
        made = [federated(scenario.model_copy(update={"seed": seed + 1}), fused) for seed in range(seeds)]
        runs.append(made)
        accuracies = [run.accuracy for run in made]
        seconds = (perf_counter() - began) / seeds
        yield Outcome(part, name, float(np.mean(accuracies)), float(np.std(accuracies)), 0.0, 1.0, seconds)

    def taught(run: Federated, teacher: nn.Module | Teacher, seed: int) -> nn.Module:
        return replace(lab, teacher=run.model).student(seed, teacher=teacher)

    plain, refined = runs
    yield from lab.judged(
        part,
        {
            "student of the global model": lambda seed: taught(plain[seed], plain[seed].model, seed),
            **{
                f"student of the clients, {combine}": partial(
                    lambda combine, seed: taught(
                        plain[seed], plain[seed].clients.teacher(plain[seed].model, combine), seed
                    ),
                    combine,
                )
                for combine in get_args(Combine)
            },
            "student of the global model, fused": lambda seed: taught(refined[seed], refined[seed].model, seed),
        },
        seeds,
        reference=lambda seed: plain[seed].model,
    )


def federated(scenario: Scenario, fusion: Fusion | None) -> Federated:
    """Run a scenario.

    Args:
        scenario: The scenario.
        fusion: Distillation of the global model in each round; None: none.
    """
    clients, plans = ClientModels(), []

    def adjust(plan: Plan) -> None:
        plan.strategy.federation.fuse(clients, fusion)
        plans.append(plan)

    with tempfile.TemporaryDirectory() as folder:
        results = runner.simulate(scenario, Path(folder) / "run", adjust=adjust)
    assert results.accuracy is not None  # the last rounds are always evaluated
    return Federated(plans[0].model, clients, results.accuracy)


def answered(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the predicted class of each input, shape (N,).

    Args:
        model: A classifier.
        inputs: N inputs.
    """
    return teachers.logits(model, inputs).argmax(dim=1)
