"""Study of the search for architectures: `python -m fedpress.simulations.studies.search digits --seeds 3`.

A teacher is trained centrally for a short while. For each budget it is made a student twice: pruned alike in every
layer, and searched for (`student: auto`); both are then distilled in the same way, quantized and bundled. Validation
data choose, test data are read for the table only. Besides: how well scores without training predict the result of a
short distillation (`--scores`), and how far predicted milliseconds are off on students that were not timed for the
prediction (`--latency`). Figures and reading: docs/results/students.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from fedpress.client import probe
from fedpress.compression.models import cost
from fedpress.compression.models.bundles import writer
from fedpress.compression.models.distillation import teachers
from fedpress.compression.models.distillation.distill import distill
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.quantization import quantize
from fedpress.compression.models.step import CandidateResult
from fedpress.compression.models.students import budgets, search
from fedpress.compression.models.students.settings import Budget, Search
from fedpress.compression.models.students.widths import Widths
from fedpress.compression.models.task import Task, evaluate
from fedpress.simulations.runs import probe_tiers
from fedpress.simulations.studies.distillation import train
from fedpress.simulations.tasks import registry


class SearchSetup(NamedTuple):
    """How a task is studied: central epochs of its teacher, budgets in bundle bytes, epochs of the distillation."""

    teacher_epochs: int
    budgets: tuple[int, ...]
    epochs: int


SETUPS = {"digits": SearchSetup(20, (10_000, 5_000), 60), "fashion-mnist": SearchSetup(5, (55_000, 28_000), 20)}


@dataclass(frozen=True)
class SearchRow:
    """One student. Accuracies are those of the quantized student, fractions; seconds are of the processor."""

    task: str
    seed: int
    budget: int
    how: str
    parameters: int
    bundle_bytes: int
    teacher: float
    validation: float
    test: float
    seconds: float
    candidates: tuple[CandidateResult, ...] = ()


def study(task: Task, teacher: nn.Module, setup: SearchSetup, settings: Search, seed: int) -> Iterator[SearchRow]:
    """Yield for each budget the row of the pruned student and that of the searched one.

    Args:
        task: The task.
        teacher: The trained teacher.
        setup: Budgets and epochs.
        settings: Settings of the search.
        seed: Seed of search and distillation.
    """
    splits = task.data()
    proxy, example = splits.proxy.inputs, splits.proxy.inputs[:1]
    distillation = Distillation(epochs=setup.epochs)
    best = evaluate(teacher, task, splits.test).accuracy
    for most in setup.budgets:
        for how in ("pruned", "auto"):
            began = process_time()
            tried: tuple[CandidateResult, ...] = ()
            if how == "pruned":
                start = budgets.student_of(teacher, example, Budget(bundle_bytes=most))
            else:
                outcome = search.search(teacher, task, Budget(bundle_bytes=most), settings, distillation, seed=seed)
                start, tried = outcome.student, outcome.candidates
            learner = distill(teacher, start, proxy, distillation, seed=seed)
            seconds = process_time() - began
            small, weights = quantize.quantized_copy(learner), quantize.quantize(learner)
            data = writer.save(learner, weights, example, task=task.name, tier="x", version=1, metrics={})
            yield SearchRow(
                task.name, seed, most, how, sum(p.numel() for p in learner.parameters()), len(data), best,
                evaluate(small, task, splits.validation).accuracy, evaluate(small, task, splits.test).accuracy,
                seconds, tried,
            )  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Spearman's rank correlation of a score with accuracy and with minus the loss on validation data."""

    score: str
    accuracy: float
    loss: float


def scores(task: Task, teacher: nn.Module, budget: int, count: int, epochs: int, seed: int) -> list[Score]:
    """Return how well scores without training predict the results of short distillations.

    Args:
        task: The task.
        teacher: The trained teacher.
        budget: Bundle bytes of the students.
        count: Number of students.
        epochs: Epochs of each distillation.
        seed: Seed of widths and distillation.
    """
    batch = task.data().proxy.inputs[: search.BATCH]
    versions, draw = Widths(teacher, batch[:1]), np.random.default_rng(seed)
    answers = teachers.logits(teacher, batch)
    rows = []
    for _ in range(count):
        exponents = {name: float(3 ** draw.uniform(-1, 1)) for name in versions.layers}
        made = versions.pruned(versions.largest(Budget(bundle_bytes=budget), exponents))
        learner = distill(teacher, made, task.data().proxy.inputs, Distillation(epochs=epochs), seed=seed)
        seen = evaluate(learner, task, task.data().validation)
        parameters = sum(p.numel() for p in made.parameters())
        rows.append([seen.accuracy, -seen.loss, parameters, *(s(made, batch, answers) for s in search.SCORES.values())])
    table = np.array(rows)
    return [
        Score(name, *(rank_correlation(table[:, column], table[:, outcome]) for outcome in (0, 1)))
        for column, name in enumerate(["parameters", *search.SCORES], start=2)
    ]


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation; 0 where all values of one are equal.

    Args:
        one: Shape (N,).
        other: Shape (N,).
    """
    from scipy.stats import spearmanr

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(spearmanr(one, other).statistic)


@dataclass(frozen=True)
class Latency:
    """Latency of a student that was not used to fit the prediction."""

    student: str
    measured_ms: float
    predicted_ms: float
    off_by: float


def latencies(task: Task, count: int = 6, seed: int = 1) -> list[Latency]:
    """Return measured and predicted latencies of students with random widths.

    Args:
        task: The task.
        count: Number of students.
        seed: Seed of the widths.
    """
    model, example = task.model(), task.data().proxy.inputs[:1]
    device = probe.measure({name: (version, example) for name, version in probe_tiers.family(model, example).items()})
    versions, draw, rows = Widths(model, example), np.random.default_rng(seed), []
    for _ in range(count):
        kept = {name: max(1, round(most * draw.uniform(0.05, 0.9))) for name, most in versions.layers.items()}
        made = versions.pruned(kept)
        measured, predicted = probe.latency_ms(made, example), cost.cost_of(made, example).latency_ms(device.speed)
        name = " x ".join(map(str, kept.values()))
        rows.append(Latency(name, measured, predicted, predicted / measured - 1))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of one task."""
    parser = argparse.ArgumentParser(prog="python -m fedpress.simulations.studies.search", description=__doc__)
    parser.add_argument("task", choices=SETUPS)
    parser.add_argument("--seeds", type=int, default=1, help="how many (1)")
    parser.add_argument("--first-seed", type=int, default=1, help="the first of them (1)")
    parser.add_argument("--budgets", type=int, nargs="+", help="in bundle bytes")
    parser.add_argument("--teacher", type=Path, help="weights of a teacher (safetensors), in place of training one")
    parser.add_argument("--scores", type=int, metavar="N", help="instead: N students say which score is worth most")
    parser.add_argument("--latency", action="store_true", help="instead: how far predicted milliseconds are off")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw what the searches of all budgets tried, as SVG")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task, setup = registry.create(given.task), SETUPS[given.task]
    setup = setup._replace(budgets=tuple(given.budgets or setup.budgets))
    rows: list[Any] = []
    if given.latency:
        _print(rows, latencies(task))
    else:
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            began = perf_counter()
            teacher = _teacher(task, setup, given.teacher, seed)
            if given.scores:
                _print(rows, scores(task, teacher, setup.budgets[0], given.scores, max(1, setup.epochs // 8), seed))
            else:
                _print(rows, study(task, teacher, setup, Search(), seed))
            print(f"seed {seed}: {perf_counter() - began:.0f} s", flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    if given.plot:
        from fedpress.simulations.report import figures

        tried = [candidate for row in rows for candidate in row.candidates if candidate.accuracy is not None]
        points = [
            figures.Tried(candidate.cost, candidate.accuracy, candidate.uniform, candidate.chosen)
            for candidate in tried
        ]
        given.plot.write_text(figures.pareto(points, "bytes of the bundle").svg(), encoding="utf-8")


def _teacher(task: Task, setup: SearchSetup, weights: Path | None, seed: int) -> nn.Module:
    if weights is None:
        return train(task, task.data().train, setup.teacher_epochs, seed)
    model = task.model()
    safetensors.torch.load_model(model, str(weights))
    return model


def _print(rows: list[Any], found: Iterator[Any] | list[Any]) -> None:
    """Print each row as it comes, with the names of its fields above the first."""
    for row in found:
        fields = {key: value for key, value in asdict(row).items() if key != "candidates"}
        if not rows:
            print("  ".join(f"{key:>12}" for key in fields))
        cells = (f"{value:.4f}" if isinstance(value, float) else str(value) for value in fields.values())
        print("  ".join(f"{cell:>12}" for cell in cells), flush=True)
        rows.append(row)


if __name__ == "__main__":
    main()
