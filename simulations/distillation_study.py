"""How the default settings of the distillation were chosen: `python -m fedpress.simulations.distillation_study digits`.

A teacher is trained centrally for a short while, pruned to a budget, and distilled with each of several settings. Each
is judged by its accuracy on validation data and by how often it agrees with the teacher on training inputs, which are
many and need no labels; the test part is not read. Figures and reading: docs/students.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedpress.compression.models.determinism import reproducible
from fedpress.compression.models.distill import Distillation, distill
from fedpress.compression.models.prune import prune_to
from fedpress.compression.models.task import Examples, Task, evaluate
from fedpress.simulations.tasks import registry


class Setup(NamedTuple):
    """How a task is studied.

    Attributes:
        teacher_epochs: Of central training, SGD with rate 0.1 and batches of 50.
        parameters: Budget of the student.
        settings: What is compared, by name; the first is the default for this task.
    """

    teacher_epochs: int
    parameters: int
    settings: Mapping[str, Distillation]


def variants(default: Distillation) -> dict[str, Distillation]:
    """The default, and settings that differ from it in one respect."""
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


SETUPS = {
    "digits": Setup(teacher_epochs=20, parameters=8_000, settings=variants(Distillation(epochs=60))),
    "fashion-mnist": Setup(teacher_epochs=2, parameters=50_000, settings=variants(Distillation(epochs=20))),
}


class Row(NamedTuple):
    """What one setting reached, the mean over the seeds.

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


def study(task: Task, setup: Setup, seeds: int = 3) -> Iterator[Row]:
    """Yield the teacher's row, then one for each setting as it is done."""
    splits = task.data()
    many = splits.train.take(np.arange(min(10_000, len(splits.train.targets))))
    began = perf_counter()
    teacher = train(task, splits.train, setup.teacher_epochs)
    yield Row("teacher", evaluate(teacher, task, splits.validation).accuracy, 1.0, perf_counter() - began)
    expected = answers(teacher, many)
    pruned = prune_to(teacher, splits.proxy.inputs[:1], setup.parameters)
    for name, settings in setup.settings.items():
        began = perf_counter()
        students = [distill(teacher, pruned, splits.proxy.inputs, settings, seed=seed) for seed in range(seeds)]
        seconds = (perf_counter() - began) / seeds
        accuracy = np.mean([evaluate(student, task, splits.validation).accuracy for student in students])
        agreement = np.mean([(answers(student, many) == expected).float().mean() for student in students])
        yield Row(name, float(accuracy), float(agreement), seconds)


def train(task: Task, examples: Examples, epochs: int, seed: int = 0) -> nn.Module:
    """Return the task's model, trained centrally."""
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
    """The class that the model gives each example, (N,)."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(batch).argmax(dim=1) for batch in torch.split(examples.inputs, 512)])


def main() -> None:
    """Print the table of one task."""
    if len(sys.argv) != 2 or sys.argv[1] not in SETUPS:
        raise SystemExit(f"usage: python -m fedpress.simulations.distillation_study {{{','.join(SETUPS)}}}")
    torch.set_num_threads(1)
    print(f"{'setting':20} {'accuracy':>9} {'agrees with teacher':>20} {'seconds':>8}")
    for row in study(registry.create(sys.argv[1]), SETUPS[sys.argv[1]]):
        print(f"{row.setting:20} {row.accuracy:9.1%} {row.agreement:20.1%} {row.seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
