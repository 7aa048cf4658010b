"""`fedpress bench tiers`: tiers that train and teach each other, compared with other ways to serve small devices.

Every row is a run of the same scenario, with the same data, clients and seed; only the models that clients train
differ. A finished row is not run again, and an interrupted one continues. The controls are made from the models of
these runs, with the labels of the proxy data, which the tiers never see.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import safetensors.torch
from torch import nn

from fedpress.compression import seeds, suggest
from fedpress.compression.errors import FedpressError
from fedpress.compression.files import write_atomically
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.distillation import distill
from fedpress.compression.models.distillation.settings import Distillation, LossWeights
from fedpress.compression.models.students import budgets
from fedpress.compression.models.task import evaluate
from fedpress.simulations.results import start
from fedpress.simulations.results.records import Results
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import runner
from fedpress.simulations.runs.job import Job
from fedpress.simulations.scenario.scenario import Scenario

ROWS = {
    "taught": "tiers train, and teach each other",
    "apart": "the same clients, each model alone",
    "heterofl": "each weight the mean of those who have it (HeteroFL)",
    "smallest": "the smallest model for all clients",
    "students": "all clients train the global model, students at the end",
}
"""Descriptions of the rows that are runs, by name."""
CONTROLS = {
    "proxy": "small model trained on the labeled proxy data alone",
    "tuned": "apart, then trained on the labeled proxy data",
    "late": "apart, students of that global model at the end",
}
"""Descriptions of the rows that are made from the models of `apart`, by name."""
ON_LABELS = Distillation(weights=LossWeights(teacher=0.0, labels=1.0))
"""Training on labels with the optimizer and the passes that students have."""


class TiersBenchError(FedpressError, ValueError):
    """The scenario has no tiers that train, a row is unknown, or a folder holds another run."""


class TierRow(NamedTuple):
    """One way to serve the tiers, with one seed.

    Attributes:
        name: Name in `ROWS` or `CONTROLS`.
        seed: Seed of the run.
        accuracy: Fractions on the scenario's evaluation split, by tier; "" is the global model. Mean of the last ten
            rounds for runs, accuracy of one model for controls and students.
        up_bytes, down_bytes: Bytes of training by tier; empty for controls.
    """

    name: str
    seed: int
    accuracy: dict[str, float]
    up_bytes: dict[str, int]
    down_bytes: dict[str, int]


def scenario_of(base: Scenario, row: str, seed: int) -> Scenario:
    """Return the scenario of a row.

    Args:
        base: Scenario of the row `taught`.
        row: Name in `ROWS`.
        seed: Seed of the run.

    Raises:
        TiersBenchError: No tier of `base` trains, or there is no such row.
    """
    raw: dict[str, Any] = {**base.model_dump(mode="json"), "seed": seed}
    teaching, tiers = raw["teaching"], [tier for tier in raw["students"]["tiers"] if tier["trains"]]
    if teaching is None or teaching["method"] != "distillation" or not teaching["every"]:
        raise TiersBenchError(
            "the scenario has no tiers that train and teach each other, such as --set 'students.tiers=[{name: phone,"
            " parameters: 0.1, trains: true}]' --set 'teaching={every: 5}'"
        )
    raw["students"]["tiers"] = tiers
    if row == "apart":
        raw["teaching"] = {"global_model": teaching["global_model"], "every": 0}  # the same, however others are taught
    elif row == "heterofl":
        raw["teaching"] = {"method": "heterofl"}
        raw["students"]["tiers"] = [{**tier, "server_learning_rate": None} for tier in tiers]
    elif row == "smallest":
        sizes = {name: work.layout.size for name, work in Job(base).tiers.items()}
        raw["students"]["tiers"] = [tier for tier in tiers if tier["name"] == min(sizes, key=lambda name: sizes[name])]
        raw["teaching"] = {"global_model": "distilled", "every": 0}
    elif row == "students":
        raw["students"]["tiers"] = [
            {**tier, "trains": False, "density": None, "server_learning_rate": None} for tier in tiers
        ]
        raw["teaching"] = None
    elif row != "taught":
        raise TiersBenchError(f"row {row!r}: expected {suggest.choices([*ROWS, *CONTROLS], row)}")
    return Scenario.model_validate_json(json.dumps(raw))


def run(base: Scenario, rows: Sequence[str], seed: int, out: Path) -> Iterator[TierRow]:
    """Yield each row when it is complete, in the order of `ROWS` and `CONTROLS`.

    Args:
        base: Scenario of the row `taught`.
        rows: Names in `ROWS` and `CONTROLS`; the controls need `apart`, which is run for them.
        seed: Seed of all runs.
        out: Folder with one folder for each run, and `controls.json`.

    Raises:
        TiersBenchError: A row is unknown, no tiers train, or a folder holds the run of another scenario.
    """
    for row in rows:
        if row not in CONTROLS:
            scenario_of(base, row, seed)  # raises before the first run
    for row in ROWS:
        if row in rows or (row == "apart" and any(name in rows for name in CONTROLS)):
            chosen = scenario_of(base, row, seed)
            results = _results(chosen, out / row)
            if row in rows:
                yield _of_run(row, seed, results)
    wanted = [name for name in CONTROLS if name in rows]
    if not wanted:
        return
    kept = out / "controls.json"
    controls: dict[str, dict[str, float]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for name in wanted:
        if name not in controls:
            controls[name] = dict(_control(name, Job(scenario_of(base, "apart", seed), out / "apart")))
            write_atomically(kept, json.dumps(controls, indent=1).encode())
        yield TierRow(name, seed, controls[name], {}, {})


def _results(scenario: Scenario, folder: Path) -> Results:
    """Return the results of a run; it is read from its folder, continued, or run."""
    run_folder = RunFolder(folder)
    if run_folder.results.is_file() and (results := run_folder.load_results()).status == "finished":
        wanted = json.loads(scenario.to_json())
        differs = sorted(key for key in wanted.keys() - {"workers"} if results.scenario.get(key) != wanted[key])
        if differs:
            raise TiersBenchError(
                f"{folder} holds a run of another scenario ({', '.join(differs)}); give another --out"
            )
        return results
    if run_folder.begun.is_file():
        start.folder_of(scenario, folder)  # raises for another scenario
        return runner.resume(folder)
    return runner.simulate(scenario, folder)


def _of_run(row: str, seed: int, results: Results) -> TierRow:
    accuracy = {"": results.accuracy} if row != "smallest" else {}
    accuracy |= {tier.tier: tier.accuracy for tier in results.tiers}
    if row == "students":
        accuracy |= {student.tier: student.student_accuracy for student in results.students}
    rest = {tier.tier: (tier.up_bytes, tier.down_bytes) for tier in results.tiers}
    own = [getattr(results.totals, name) - sum(each[way] for each in rest.values())
           for way, name in enumerate(("up_bytes", "down_bytes"))]  # fmt: skip
    by_tier = {"": tuple(own), **rest}
    return TierRow(
        row, seed, {tier: value for tier, value in accuracy.items() if value is not None},
        {tier: up for tier, (up, _) in by_tier.items()}, {tier: down for tier, (_, down) in by_tier.items()},
    )  # fmt: skip


def _control(name: str, job: Job) -> Iterator[tuple[str, float]]:
    """Yield each tier and the accuracy of its control, from the run in the job's folder."""
    workload = job.whole
    assert workload.out is not None
    folder, splits = RunFolder(workload.out), workload.task.data()
    proxy, choice = splits.proxy, workload.scenario
    on = getattr(splits, choice.evaluation.split)
    for tier, work in job.tiers.items():
        seed = seeds.derive(work.federation, choice.seed, name)
        if name == "late":
            teacher = _loaded(workload.fresh_model(), folder.model)
            smaller = budgets.student_of(
                teacher, model_inputs.first(proxy.inputs), work.budget, quantization=choice.students.quantize
            )
            made = distill.distill(teacher, smaller, proxy.inputs, seed=seed)
        else:
            start = work.fresh_model()
            if name == "tuned":
                start = _loaded(start, folder.tiers / f"{tier}.safetensors")
            made = distill.distill(start, start, proxy.inputs, ON_LABELS, targets=proxy.targets, seed=seed)
        yield tier, evaluate(made, workload.task, on).accuracy


def _loaded(model: nn.Module, path: Path) -> nn.Module:
    safetensors.torch.load_model(model, str(path))
    return model


def table(rows: Sequence[TierRow]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the columns and the lines of a table: the mean accuracy over the seeds, for each row and model."""
    tiers = list(dict.fromkeys(tier for row in rows for tier in row.accuracy))
    lines = []
    for name in dict.fromkeys(row.name for row in rows):
        own = [row for row in rows if row.name == name]
        cells = [[row.accuracy[tier] for row in own if tier in row.accuracy] for tier in tiers]
        lines.append(
            (name, *(f"{fmean(cell):.2%}" if cell else "" for cell in cells), ROWS.get(name) or CONTROLS[name])
        )
    return ("row", *(tier or "global" for tier in tiers), "what it is"), lines


def closed(rows: Sequence[TierRow]) -> dict[str, tuple[float, float]]:
    """Return the gap of each tier to the global model without teaching, and the part of it that teaching closes.

    Both are differences of accuracy (fractions), means over the seeds that have both rows. The gap is from the tier's
    model of `apart` to the better global model of `taught` and `students`.
    """
    gaps: dict[str, list[tuple[float, float]]] = {}
    by_name = {(row.name, row.seed): row for row in rows}
    for (name, seed), taught in by_name.items():
        apart = by_name.get(("apart", seed))
        if name != "taught" or apart is None:
            continue
        students = by_name.get(("students", seed))
        best = max(row.accuracy[""] for row in (taught, students) if row is not None)
        for tier in taught.accuracy.keys() - {""}:
            alone = apart.accuracy[tier]
            gaps.setdefault(tier, []).append((best - alone, taught.accuracy[tier] - alone))
    return {tier: (fmean(gap for gap, _ in each), fmean(gain for _, gain in each)) for tier, each in gaps.items()}
