"""Study of students of other architectures: `python -m fedpress.simulations.studies.heterogeneous pairs`.

Each part has a teacher that was trained centrally, and students judged on test data, which no choice was made by. A
technique stands below its baseline, which is as large. Figures and reading: docs/results/students.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedpress.compression.models.distillation import data_free, settings
from fedpress.compression.models.distillation.distill import distill, fit
from fedpress.compression.models.distillation.sequence_level import continued
from fedpress.compression.models.distillation.settings import (
    Continuations,
    DataFree,
    Distillation,
    LossWeights,
)
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.students.initial_student import Start, start_of
from fedpress.compression.models.students.settings import Budget
from fedpress.compression.models.task import Examples, Task, evaluate
from fedpress.simulations.tasks.digits import Digits
from fedpress.simulations.tasks.fashion_mnist import FashionMNIST
from fedpress.simulations.tasks.text import Text

LABELS_ALONE = LossWeights(teacher=0.0, labels=1.0)


class Size(NamedTuple):
    """Size of a study.

    Attributes:
        train: Training examples that the teacher sees.
        teacher_epochs: Passes over them.
        proxy: Proxy examples that students see, or as many synthetic ones.
        epochs: Passes over these.
        seeds: Students of each row.
        test: Test examples.
    """

    train: int
    teacher_epochs: int
    proxy: int
    epochs: int
    seeds: int
    test: int


class HeterogeneousRow(NamedTuple):
    """Result of one technique, the mean over the seeds.

    Attributes:
        teacher: Architecture of the teacher.
        technique: How the student was made.
        parameters: Of the student.
        accuracy: On test data, a fraction.
        deviation: Of that over the seeds.
        agreement: Part of the test answers that are the teacher's.
        speed: How many times as fast as the teacher, one thread, batches of 64, in this run.
        seconds: Of processor time, to make one student.
    """

    teacher: str
    technique: str
    parameters: int
    accuracy: float
    deviation: float
    agreement: float
    speed: float
    seconds: float


Make = Callable[[int], nn.Module]
"""Makes a student, or where it starts, from a seed."""


class Bench:
    """A task with its teacher, and the means to make students.

    Args:
        task: The task.
        size: Size of the study.
        learning_rate: Of the teacher's training.
    """

    def __init__(self, task: Task, size: Size, learning_rate: float = 2e-3) -> None:
        self.task, self.size = task, size
        splits = task.data()
        some = partial(np.arange, 0)
        self.proxy = splits.proxy.take(some(min(size.proxy, len(splits.proxy.targets))))
        self.test = splits.test.take(some(min(size.test, len(splits.test.targets))))
        draw = np.random.default_rng(0).permutation(len(splits.train.targets))[: size.train]
        self.settings = Distillation(epochs=size.epochs)
        began = process_time()
        self.teacher = trained(task, splits.train.take(draw), size.teacher_epochs, learning_rate)
        self.seconds = process_time() - began
        self.expected = answers(self.teacher, self.test.inputs)

    def start(
        self, seed: int, *, architecture: str | None = None, parameters: int | None = None, layers: float | None = None
    ) -> nn.Module:
        """Return an initial student.

        Args:
            seed: Seed of its weights.
            architecture: Name of another architecture; None: the teacher's.
            parameters: Most parameters; None: as many as the teacher has.
            layers: Fraction of the teacher's layers to keep, evenly spaced; None: all.
        """
        most = structural.parameters_of(self.teacher) if parameters is None else parameters
        chosen = Start(architecture, layers)
        return start_of(self.task, self.teacher, self.proxy.inputs[:1], Budget(most), chosen, seed=seed)

    def student(
        self,
        start: Make,
        seed: int,
        *,
        inputs: Tensor | None = None,
        targets: Tensor | None = None,
        settings: Distillation | None = None,
    ) -> nn.Module:
        """Return a distilled student.

        Args:
            start: Makes the initial student.
            seed: Seed of the distillation.
            inputs: Inputs to distill on; None: the proxy data.
            targets: Their labels; None: none.
            settings: Distillation; None: the study's.
        """
        views = self.proxy.inputs if inputs is None else inputs
        return distill(self.teacher, start(seed), views, settings or self.settings, targets=targets, seed=seed)

    def taught(self, start: Make) -> Make:
        """Return a distillation from the teacher's outputs alone."""
        return partial(self.student, start)

    def untaught(self, start: Make) -> Make:
        """Return a training without the teacher, on the labels of the proxy data."""
        settings = replace(self.settings, weights=LABELS_ALONE)
        return partial(self.student, start, targets=self.proxy.targets, settings=settings)

    def with_labels(self, start: Make) -> Make:
        """Return a distillation from the teacher's outputs and the labels."""
        return partial(self.student, start, targets=self.proxy.targets)

    def rows(self, techniques: Mapping[str, Make]) -> Iterator[HeterogeneousRow]:
        """Yield the teacher's row, then one for each technique when it is complete."""
        name = str(getattr(self.task, "architecture", self.task.name))
        accuracy = evaluate(self.teacher, self.task, self.test).accuracy
        yield HeterogeneousRow(
            name, "the teacher", structural.parameters_of(self.teacher), accuracy, 0.0, 1.0, 1.0, self.seconds
        )
        for technique, make in techniques.items():
            began = process_time()
            students = [make(seed) for seed in range(self.size.seeds)]
            seconds = (process_time() - began) / len(students)
            accuracies = [evaluate(student, self.task, self.test).accuracy for student in students]
            agreements = [answers(student, self.test.inputs) == self.expected for student in students]
            yield HeterogeneousRow(
                name,
                technique,
                structural.parameters_of(students[0]),
                float(np.mean(accuracies)),
                float(np.std(accuracies)),
                float(np.mean([each.float().mean() for each in agreements])),
                speed(self.teacher, students[0], self.test.inputs[:64]),
                seconds,
            )


def trained(task: Task, examples: Examples, epochs: int, learning_rate: float) -> nn.Module:
    """Return the task's model, trained centrally with AdamW and a cosine schedule, batches of 32.

    Args:
        task: The task.
        examples: Training data.
        epochs: Passes over them.
        learning_rate: Initial learning rate.
    """
    settings = Distillation(epochs=epochs, learning_rate=learning_rate)
    count = len(examples.targets)
    with reproducible(0) as generator:
        model = task.model().train()
        fit(
            model.parameters(),
            lambda: torch.split(torch.randperm(count, generator=generator), settings.batch_size),
            lambda batch: task.loss(model(examples.inputs[batch]), examples.targets[batch]),
            settings,
            steps=epochs * -(-count // settings.batch_size),
        )
    return model.eval()


def answers(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the predicted label of each example, shape (N,), or of each position, (N, L).

    Args:
        model: A classifier.
        inputs: N inputs.
    """
    model.eval()
    with torch.no_grad():
        return torch.cat([model(batch).argmax(dim=-1) for batch in torch.split(inputs, 512)])


def speed(teacher: nn.Module, student: nn.Module, inputs: Tensor, repeats: int = 15) -> float:
    """Return the student's speed over the teacher's, by the least processor time of each, measured in turns.

    Args:
        teacher: The teacher.
        student: The student.
        inputs: One batch.
        repeats: Number of timings.
    """
    least = [float("inf")] * 2
    with reproducible(0), torch.no_grad():
        for _ in range(repeats):
            for index, model in enumerate((teacher.eval(), student.eval())):
                began = process_time()
                model(inputs)
                least[index] = min(least[index], process_time() - began)
    return least[0] / least[1]


def pairs(size: Size) -> Iterator[HeterogeneousRow]:
    """CNN to MLP and to a small transformer, on Fashion-MNIST."""
    bench = Bench(FashionMNIST(), size)
    techniques: dict[str, Make] = {}
    for name in ("mlp", "vit-small"):
        start = partial(bench.start, architecture=name)
        pruned = partial(bench.start, parameters=structural.parameters_of(start(0)))
        techniques |= {
            f"{name}, labels alone": bench.untaught(start),
            f"{name}, taught": bench.taught(start),
            f"{name}, taught, labels": bench.with_labels(start),
            f"pruned cnn as large as {name}": bench.taught(pruned),
        }
    yield from bench.rows(techniques)


def text(size: Size) -> Iterator[HeterogeneousRow]:
    """Transformer to recurrent network, and what the teacher writes as material, on text."""
    bench = Bench(Text(model="transformer"), size)
    # Softened distributions of the next character drown what is likely: 48.7 % of it is learned at 2, 53.1 % at 1.
    bench.settings = replace(bench.settings, temperature=1.0)
    start = partial(bench.start, architecture="gru-small")
    twice = replace(bench.settings, epochs=max(1, bench.settings.epochs // 2))  # as many steps on twice the windows

    def sequence_level(seed: int) -> nn.Module:
        made = continued(bench.teacher, bench.proxy.inputs, Continuations(), seed=seed)
        alone = replace(bench.settings, weights=LABELS_ALONE)
        return bench.student(start, seed, inputs=made.inputs, targets=made.targets, settings=alone)

    def both(seed: int) -> nn.Module:
        made = continued(bench.teacher, bench.proxy.inputs, Continuations(), seed=seed)
        return bench.student(start, seed, inputs=torch.cat([bench.proxy.inputs, made.inputs]), settings=twice)

    yield from bench.rows(
        {
            "gru, labels alone": bench.untaught(start),
            "gru, prompts": bench.taught(start),
            "gru, continuations, characters": sequence_level,
            "gru, prompts and continuations": both,
        }
    )


def without_data(task: Task, size: Size) -> Iterator[HeterogeneousRow]:
    """Proxy data, noise, batch norm statistics and generators, for a teacher with batch norm.

    Args:
        task: Task whose model has batch norm.
        size: Size of the study.
    """
    bench = Bench(task, size)
    start = partial(bench.start, parameters=structural.parameters_of(bench.teacher) // 12)
    shape = tuple(bench.proxy.inputs.shape[1:])

    def noise(seed: int) -> nn.Module:
        drawn = torch.rand(len(bench.proxy.inputs), *shape, generator=torch.Generator().manual_seed(seed))
        return bench.student(start, seed, inputs=drawn)

    def without_data(recipe: DataFree, seed: int) -> nn.Module:
        recipe = replace(recipe, examples=len(bench.proxy.inputs))
        inputs = data_free.synthesize(bench.teacher, shape, recipe, student=start(seed), seed=seed)
        return bench.student(start, seed, inputs=inputs)

    yield from bench.rows(
        {"proxy data": bench.taught(start), "uniform noise": noise}
        | {name: partial(without_data, recipe) for name, recipe in settings.RECIPES.items()}
    )


def views(size: Size) -> Iterator[HeterogeneousRow]:
    """A teacher that sees the whole image, and students that see a part, a coarse picture or edges of it."""
    bench = Bench(FashionMNIST(), size)
    techniques: dict[str, Make] = {}
    for name in ("mlp-left-half", "mlp-coarse", "mlp-edges"):
        start = partial(bench.start, architecture=name)
        techniques |= {
            f"{name}, labels alone": bench.untaught(start),
            f"{name}, taught": bench.taught(start),
            f"{name}, taught, labels": bench.with_labels(start),
        }
    yield from bench.rows(techniques)


def transformer(size: Size) -> Iterator[HeterogeneousRow]:
    """A vision transformer: every second layer dropped, heads and feed-forward columns removed, distilled."""
    bench = Bench(FashionMNIST(model="vit"), size)
    half = partial(bench.start, layers=0.5)
    cut = partial(bench.start, layers=0.5, parameters=int(0.35 * structural.parameters_of(bench.teacher)))
    yield from bench.rows(
        {
            "half the layers, labels alone": bench.untaught(half),
            "half the layers": bench.taught(half),
            "half the layers, attention maps": partial(
                bench.student, half, settings=replace(bench.settings, weights=LossWeights(attention=1.0))
            ),
            "half the layers, all cut": bench.taught(cut),
            "vit-small, fresh": bench.taught(partial(bench.start, architecture="vit-small")),
        }
    )


PARTS: Mapping[str, tuple[Callable[[Size], Iterator[HeterogeneousRow]], Size]] = {
    "pairs": (pairs, Size(54_000, 1, 5_000, 20, 3, 10_000)),
    "text": (text, Size(58_529, 1, 1_275, 20, 2, 2_545)),
    "data-free": (partial(without_data, Digits(model="cnn-bn")), Size(1_037, 20, 300, 60, 3, 360)),
    "data-free-fashion-mnist": (
        partial(without_data, FashionMNIST(model="cnn-bn")),
        Size(20_000, 1, 500, 40, 1, 10_000),
    ),
    "views": (views, Size(54_000, 1, 5_000, 20, 3, 10_000)),
    "transformer": (transformer, Size(54_000, 3, 5_000, 20, 3, 10_000)),
}
"""What is compared, and at what size by default."""


def main() -> None:
    """Print the table of one part."""
    parser = argparse.ArgumentParser(prog="python -m fedpress.simulations.studies.heterogeneous", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    for name in Size._fields:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="see Size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    given = parser.parse_args()
    study, size = PARTS[given.part]
    size = size._replace(**{name: value for name in Size._fields if (value := getattr(given, name)) is not None})
    torch.set_num_threads(1)
    rows = []
    for row in study(size):
        rows.append(row)
        if len(rows) == 1:
            print(f"{'technique':36} {'parameters':>10} {'accuracy':>15} {'agreement':>9} {'speed':>6} {'seconds':>8}")
        print(
            f"{row.technique:36} {row.parameters:10,} {row.accuracy:9.1%} {row.deviation:5.1%} {row.agreement:9.1%}"
            f" {row.speed:5.1f}x {row.seconds:8.1f}",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps({"size": size._asdict(), "rows": [row._asdict() for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
