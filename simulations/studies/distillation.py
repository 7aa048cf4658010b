"""Study behind the defaults of distillation: `python -m fedpress.simulations.studies.distillation digits`.

A teacher is trained centrally for a short while, pruned to a budget, and distilled with each of several settings. Each
is judged by its accuracy on validation data and by how often it agrees with the teacher on training inputs, which are
many and need no labels; the test part is not read. `--techniques` compares the techniques of `techniques` with these
settings. Figures: docs/results/students.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedpress.compression.models.distillation.distill import distill
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.pruning.structural import prune_to
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.task import Examples, Task, evaluate
from fedpress.simulations.scenario import scenario
from fedpress.simulations.studies import techniques
from fedpress.simulations.studies.techniques import Lab
from fedpress.simulations.tasks import registry


class DistillationSetup(NamedTuple):
    """How a task is studied.

    Attributes:
        teacher_epochs: Of central training, SGD with rate 0.1 and batches of 50.
        parameters: Budget of the student.
        settings: What is compared, by name; the first is the default for this task.
        small: Budget of the student that techniques are compared on; the plain one has lost something there.
        federations: Runs whose client models teach: scenario and what is changed in it, by name.
    """

    teacher_epochs: int
    parameters: int
    settings: Mapping[str, Distillation]
    small: int = 1_000
    federations: Mapping[str, tuple[str, ...]] = {}


def variants(default: Distillation) -> dict[str, Distillation]:
    """Return the default, and settings that differ from it in one respect."""
    changes: list[dict[str, Any]] = [
        {"epochs": default.epochs // 2},
        {"epochs": default.epochs * 2},
        {"batch_size": 16},
        {"batch_size": 64},
        {"learning_rate": 1e-3},
        {"learning_rate": 1e-2},
        {"temperature": 1.0},
        {"temperature": 4.0},
    ]
    named = {f"{key}={value}": default.__dict__ | {key: value} for change in changes for key, value in change.items()}
    return {"default": default} | {name: Distillation(**fields) for name, fields in named.items()}


_SKEWED = ("digits", "students={tiers: []}", "partition.alpha=0.1", "rounds=40", "evaluation.every=100")

SETUPS = {
    "digits": DistillationSetup(
        teacher_epochs=20,
        parameters=8_000,
        settings=variants(Distillation(epochs=60)),
        small=2_000,
        federations={
            "clients, sparse": _SKEWED,
            "clients, dense": (
                *_SKEWED,
                "encoder={kind: dense, values: float32, feedback: none}",
                "downlink=null",
                "server={learning_rate: 1.0, momentum: 0.0}",
            ),
        },
    ),
    "fashion-mnist": DistillationSetup(
        teacher_epochs=2, parameters=50_000, settings=variants(Distillation(epochs=20)), small=5_000
    ),
}


class DistillationRow(NamedTuple):
    """Result of one setting, the mean over the seeds.

    Attributes:
        setting: Its name; of the first row "teacher".
        accuracy: On validation data.
        agreement: Part of the training inputs on which the answer is the teacher's.
        seconds: To train it.
    """

    setting: str
    accuracy: float
    agreement: float
    seconds: float


def study(task: Task, setup: DistillationSetup, seeds: int = 3) -> Iterator[DistillationRow]:
    """Yield the teacher's row, then one for each setting when it is complete.

    Args:
        task: The task.
        setup: What is compared.
        seeds: Number of students of each setting.
    """
    splits = task.data()
    many = splits.train.take(np.arange(min(10_000, len(splits.train.targets))))
    began = perf_counter()
    teacher = train(task, splits.train, setup.teacher_epochs)
    yield DistillationRow("teacher", evaluate(teacher, task, splits.validation).accuracy, 1.0, perf_counter() - began)
    expected = answers(teacher, many)
    pruned = prune_to(teacher, splits.proxy.inputs[:1], setup.parameters)
    for name, settings in setup.settings.items():
        began = perf_counter()
        students = [distill(teacher, pruned, splits.proxy.inputs, settings, seed=seed) for seed in range(seeds)]
        seconds = (perf_counter() - began) / seeds
        accuracy = np.mean([evaluate(student, task, splits.validation).accuracy for student in students])
        agreement = np.mean([(answers(student, many) == expected).float().mean() for student in students])
        yield DistillationRow(name, float(accuracy), float(agreement), seconds)


def train(task: Task, examples: Examples, epochs: int, seed: int = 0) -> nn.Module:
    """Return the task's model, trained centrally with SGD.

    Args:
        task: The task.
        examples: Training data.
        epochs: Passes over them.
        seed: Seed of initial weights and order.
    """
    with reproducible(seed) as generator:
        model = task.model()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(examples.targets), generator=generator), 50):
                optimizer.zero_grad()
                torch.autograd.backward(task.loss(model(examples.inputs[batch]), examples.targets[batch]))
                optimizer.step()
    return model


def answers(model: nn.Module, examples: Examples) -> Tensor:
    """Return the predicted class of each example, shape (N,).

    Args:
        model: A classifier.
        examples: N examples.
    """
    model.eval()
    with torch.no_grad():
        return torch.cat([model(batch).argmax(dim=1) for batch in torch.split(examples.inputs, 512)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of one task."""
    parser = argparse.ArgumentParser(prog="python -m fedpress.simulations.studies.distillation")
    parser.add_argument("task", choices=SETUPS)
    parser.add_argument("--techniques", action="store_true", help="compare techniques instead of settings")
    parser.add_argument("--part", action="append", default=[], help="a part of the techniques only; may be repeated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task, setup = registry.create(chosen.task), SETUPS[chosen.task]
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        if chosen.json:  # after each row: a study takes long
            chosen.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    if chosen.techniques:
        teacher = train(task, task.data().train, setup.teacher_epochs)
        lab = Lab(task, teacher, setup.small, setup.settings["default"])
        federations = {part: scenario.load(name, changes) for part, (name, *changes) in setup.federations.items()}
        print(
            f"{'part':15} {'technique':35} {'accuracy':>9} {'+-':>5} {'worst class':>11} {'agrees':>7} {'seconds':>8}"
        )
        for outcome in techniques.study(lab, chosen.seeds, federations, chosen.part):
            part, technique, accuracy, deviation, worst, agreement, seconds = outcome
            print(
                f"{part:15} {technique:35} {accuracy:9.1%} {100 * deviation:5.1f} {-worst:11.1%} {agreement:7.1%}"
                f" {seconds:8.1f}",
                flush=True,
            )
            keep(outcome._asdict())
    else:
        print(f"{'setting':20} {'accuracy':>9} {'agrees with teacher':>20} {'seconds':>8}")
        for row in study(task, setup, chosen.seeds):
            print(f"{row.setting:20} {row.accuracy:9.1%} {row.agreement:20.1%} {row.seconds:8.1f}", flush=True)
            keep(row._asdict())


if __name__ == "__main__":
    main()
