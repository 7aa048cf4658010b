"""Study of pruning methods against their baselines: `python -m fedpress.simulations.studies.pruning digits`.

A teacher is trained centrally for a short while and pruned in each of several ways, with the same number of passes over
the proxy data after (or between) the steps; each row names the row that it is to be compared with, which has the same
size. Accuracy is on the test part, which nothing here chooses by. Figures and reading: docs/results/students.md.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from fedpress.compression.models import masks
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.pruning import fine_tuning, sparse_kernels, structural, weights
from fedpress.compression.models.pruning.fine_tuning import FineTune
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.pruning.schedule import PruningResult, prune
from fedpress.compression.models.pruning.settings import Pruning
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.step import LayerTiming, PruningStep
from fedpress.compression.models.task import Task, evaluate
from fedpress.simulations.studies import distillation
from fedpress.simulations.tasks import registry


class Variant(NamedTuple):
    """A method of pruning.

    Attributes:
        removed_fraction: Fraction to remove, as of `schedule.prune`.
        settings: The method's settings.
        baseline: Name of the row of the same size that it is compared with.
        trained_on: What trains between the steps: "teacher", distillation; "answers", the teacher's classes as labels,
            which a penalty needs; "labels", the training data, as a lottery ticket needs them; "fresh", the same, but
            in the end the ticket's mask is trained from other weights: its control.
    """

    removed_fraction: float | Literal["auto"]
    settings: Pruning
    baseline: str = ""
    trained_on: str = "teacher"


class PruningSetup(NamedTuple):
    """How a task is studied: epochs of the teacher (SGD, rate 0.1, batches of 50), and what is compared, by name."""

    teacher_epochs: int
    variants: Mapping[str, Variant]


def variants(channels: float, weights: float, epochs: int, teacher_epochs: int) -> dict[str, Variant]:
    """Return the rows of a task.

    Args:
        channels: Fraction of parameters removed as channels.
        weights: Fraction of parameters removed as single weights.
        epochs: Epochs of training of each row.
        teacher_epochs: Epochs of the teacher, and of each lottery ticket.
    """
    each: dict[str, Any] = {"fine_tune_epochs": epochs // 3, "steps": 3}

    def structural(baseline: str, trained_on: str = "teacher", **changes: Any) -> Variant:
        fields: dict[str, Any] = {"removed_fraction": channels, "fine_tune_epochs": epochs} | changes
        return Variant(fields.pop("removed_fraction"), Pruning(**fields), baseline, trained_on)

    def single(baseline: str, trained_on: str = "teacher", **changes: Any) -> Variant:
        fields: dict[str, Any] = {"granularity": "weights", "removed_fraction": weights}
        return structural(baseline, trained_on, **fields | changes)

    lasso: dict[str, Any] = {"penalty": "group_lasso", "penalty_epochs": epochs, "penalty_weight": 1e-5}
    lone: dict[str, Any] = {"penalty": "l1", "penalty_epochs": epochs, "penalty_weight": 1e-4}
    ticket: dict[str, Any] = {"schedule": "lottery", "steps": 3, "fine_tune_epochs": teacher_epochs}
    automatic: dict[str, Any] = {"removed_fraction": "auto", "schedule": "iterative", "tolerance": 0.01}
    automatic |= each | {"steps": 6}
    return {
        "channels: random": structural("", importance="random"),
        "channels: l1": structural("channels: random", importance="l1"),
        "channels: l2": structural("channels: random"),
        "channels: taylor": structural("channels: random", importance="taylor"),
        "channels: l2, global": structural("channels: l2", ranking="global"),
        "channels: taylor, global": structural("channels: l2", importance="taylor", ranking="global"),
        "channels: lamp, global": structural("channels: l2", importance="lamp", ranking="global"),
        "channels: l2, iterative": structural("channels: l2", schedule="iterative", **each),
        "channels: l2, cubic": structural("channels: l2", schedule="cubic", **each),
        "channels: no penalty": structural("", "answers", **lasso | {"penalty_weight": 1e-12}),
        "channels: group lasso": structural("channels: no penalty", "answers", **lasso),
        "channels: auto, 1 point": structural("", **automatic),
        "weights: random": single("", importance="random"),
        "weights: l1": single("weights: random", importance="l1"),
        "weights: taylor": single("weights: l1", importance="taylor"),
        "weights: l1, global": single("weights: l1", importance="l1", ranking="global"),
        "weights: l1, erk": single("weights: l1", importance="l1", ranking="erk"),
        "weights: lamp, global": single("weights: l1, global", importance="lamp", ranking="global"),
        "weights: l1, iterative": single("weights: l1", importance="l1", schedule="iterative", **each),
        "weights: l1, cubic": single("weights: l1", importance="l1", schedule="cubic", **each),
        "weights: no penalty": single("", "answers", **lone | {"penalty_weight": 1e-12}),
        "weights: l1 penalty": single("weights: no penalty", "answers", **lone),
        "weights: 2:4, random": single("", granularity="2:4", removed_fraction=0.5, importance="random"),
        "weights: 2:4": single("weights: 2:4, random", granularity="2:4", removed_fraction=0.5),
        "weights: lottery, fresh weights": single("", "fresh", **ticket),
        "weights: lottery": single("weights: lottery, fresh weights", "labels", **ticket),
        "weights: auto, 1 point": single("", **automatic),
    }


SETUPS = {
    "digits": PruningSetup(20, variants(channels=0.95, weights=0.98, epochs=30, teacher_epochs=20)),
    "fashion-mnist": PruningSetup(2, variants(channels=0.95, weights=0.98, epochs=6, teacher_epochs=2)),
}


class PruningRow(NamedTuple):
    """Result of one method of pruning, means over the seeds.

    Attributes:
        name, baseline: Of the variant; of the first row "teacher".
        parameters: That are left.
        flops: Of one example, of the model as it is executed densely.
        accuracy: On test data.
        spread: Its standard deviation over the seeds.
        seconds: Of one seed.
        steps: The curve of the first seed, on validation data.
    """

    name: str
    baseline: str
    parameters: float
    flops: float
    accuracy: float
    spread: float
    seconds: float
    steps: tuple[PruningStep, ...]


def study(task: Task, setup: PruningSetup, seeds: int, only: str, kept: Path | None = None) -> Iterator[PruningRow]:
    """Yield the teacher's row, then one for each variant when it is complete.

    Args:
        task: The task.
        setup: What is compared.
        seeds: Number of runs of each variant.
        only: Beginning of the names of variants to run; empty: all.
        kept: File of the teacher's weights, as for `trained_teacher`.
    """
    splits = task.data()
    example = splits.proxy.inputs[:1]
    began = perf_counter()
    fresh, teacher = trained_teacher(task, setup.teacher_epochs, kept)
    accuracy, size = evaluate(teacher, task, splits.test).accuracy, structural.parameters_of(teacher)
    yield PruningRow(
        "teacher", "", size, structural.flops_of(teacher, example), accuracy, 0.0, perf_counter() - began, ()
    )
    for name, variant in setup.variants.items():
        if not name.startswith(only):
            continue
        began = perf_counter()
        results = [carry_out(task, fresh, teacher, variant, seed) for seed in range(seeds)]
        seconds = (perf_counter() - began) / seeds
        accuracies = [evaluate(each.model, task, splits.test).accuracy for each in results]
        yield PruningRow(
            name,
            variant.baseline,
            float(np.mean([[step.parameters for step in each.steps if step.taken][-1] for each in results])),
            float(np.mean([structural.flops_of(each.model, example) for each in results])),
            float(np.mean(accuracies)),
            float(np.std(accuracies)),
            seconds,
            results[0].steps,
        )


def carry_out(task: Task, fresh: nn.Module, teacher: nn.Module, variant: Variant, seed: int) -> PruningResult:
    """Prune the teacher; the lottery's control has the ticket's mask and new weights.

    Args:
        task: The task.
        fresh: The teacher before its training, for lottery tickets.
        teacher: The trained teacher.
        variant: The method.
        seed: Seed of the training.
    """
    splits = task.data()
    answers = fine_tuning.answered(teacher, splits.proxy.inputs)
    trainers: dict[str, FineTune] = {
        "teacher": fine_tuning.distilling(teacher, splits.proxy.inputs, Distillation()),
        "answers": fine_tuning.training(task, answers),
        "labels": fine_tuning.training(task, splits.train),
        "fresh": fine_tuning.training(task, splits.train),
    }
    fine_tune = trainers[variant.trained_on]
    result = prune(
        teacher,
        variant.removed_fraction,
        variant.settings,
        task=task,
        examples=answers,
        validation=splits.validation,
        fine_tune=fine_tune,
        rewind=fresh if variant.settings.schedule == "lottery" else None,
        seed=seed,
    )
    if variant.trained_on != "fresh":
        return result
    assert result.masks is not None
    with reproducible(1_000 + seed):
        other = task.model()
    epochs = variant.settings.fine_tune_epochs
    model = masks.train_within(other, result.masks, lambda masked: fine_tune(masked, epochs=epochs, seed=seed))
    return result._replace(model=model)


def trained_teacher(task: Task, epochs: int, kept: Path | None) -> tuple[nn.Module, nn.Module]:
    """Return the task's model before and after central training.

    Args:
        task: The task.
        epochs: Epochs of the training.
        kept: File of the trained weights: read if it exists, else written; None: no file.
    """
    with reproducible(0):
        fresh = task.model()
    if kept is not None and kept.is_file():
        teacher = copy.deepcopy(fresh)
        teacher.load_state_dict(torch.load(kept, weights_only=True))
        return fresh, teacher
    teacher = distillation.train(task, task.data().train, epochs)
    if kept is not None:
        torch.save(teacher.state_dict(), kept)
    return fresh, teacher


class Execution(NamedTuple):
    """Time of one layer, or of the whole model, for a batch: dense, sparse, and which is kept."""

    density: float
    batch: int
    timing: LayerTiming


def execution(task: Task, teacher: nn.Module) -> Iterator[Execution]:
    """Time the teacher's layers without their smallest weights, dense and sparse.

    Args:
        task: The task.
        teacher: The teacher; its accuracy does not matter.
    """
    inputs = task.data().proxy.inputs
    for density in (0.1, 0.02, 0.005):
        model = copy.deepcopy(teacher).eval()
        masks.apply(model, weights.by_importance(model, density, Criterion(ranking="global")))
        for batch in (1, 64):
            found, timings = sparse_kernels.faster(model, inputs[:batch])
            yield from (Execution(density, batch, timing) for timing in timings)
            before, after = (sparse_kernels.milliseconds(each, inputs[:batch], 0.2) for each in (model, found))
            whole = LayerTiming("the model", density, before, after, "sparse" if after < before else "dense")
            yield Execution(density, batch, whole)


def print_execution(task: Task, teacher: nn.Module, path: Path | None) -> None:
    """Print the table of execution times.

    Args:
        task: The task.
        teacher: The teacher.
        path: Also write the rows there, as JSON; None: no file.
    """
    print(f"{'left':>5} {'batch':>5}  {'layer':10} {'density':>8} {'dense ms':>9} {'sparse ms':>9}  kept")
    rows = []
    for row in execution(task, teacher):
        layer, density, dense, sparse, chosen = astuple(row.timing)
        print(
            f"{row.density:5.1%} {row.batch:5}  {layer:10} {density:8.2%} {dense:9.3f} {sparse:9.3f}  {chosen}",
            flush=True,
        )
        rows.append({"left": row.density, "batch": row.batch} | asdict(row.timing))
    if path is not None:
        path.write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    """Print the table of one task."""
    parser = argparse.ArgumentParser(prog="python -m fedpress.simulations.studies.pruning", description=__doc__)
    parser.add_argument("task", choices=SETUPS)
    parser.add_argument("--only", default="", help="rows whose name begins so, such as 'weights'")
    parser.add_argument("--seeds", type=int, default=3, help="how many; of the training after pruning (default 3)")
    parser.add_argument("--teacher", type=Path, help="file where the trained teacher is kept for the next time")
    parser.add_argument("--json", type=Path, help="file for the rows, with the curve of each")
    parser.add_argument("--execution", action="store_true", help="time layers dense and sparse instead")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.execution:
        task = registry.create(given.task)
        _, teacher = trained_teacher(task, SETUPS[given.task].teacher_epochs, given.teacher)
        print_execution(task, teacher, given.json)
        return
    print(f"{'':34} {'parameters':>10} {'MFLOPs':>7} {'accuracy':>9} {'±':>5} {'seconds':>8}  against")
    rows = []
    for row in study(registry.create(given.task), SETUPS[given.task], given.seeds, given.only, given.teacher):
        rows.append(row)
        print(
            f"{row.name:34} {row.parameters:10,.0f} {row.flops / 1e6:7.2f} {row.accuracy:9.2%} {row.spread:5.2%}"
            f" {row.seconds:8.1f}  {row.baseline}",
            flush=True,
        )
        if given.json is not None:
            figures = [each._asdict() | {"steps": [asdict(step) for step in each.steps]} for each in rows]
            given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
