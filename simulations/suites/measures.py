"""Figures of a suite as tidy tables: a row for each run, for each evaluated round, for each target accuracy."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from fedpress.compression import seeds
from fedpress.compression.files import write_atomically
from fedpress.compression.ledger import Ledger
from fedpress.compression.models.task import Task
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import payloads
from fedpress.simulations.benchmarks import codec_data
from fedpress.simulations.conditions.network import Network, NetworkSettings
from fedpress.simulations.report import series
from fedpress.simulations.results.records import Results
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import replay
from fedpress.simulations.runs.plan_masks import first_mask
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.suites.cells import CellStore
from fedpress.simulations.suites.suite import Cell, Suite

SMOOTHED = 3
"""Number of evaluations whose mean must reach a target accuracy, since a single one varies by points."""
NEAR_CHANCE = 0.25
"""Way from guessing to no error at all up to which a model has learned too little to be compared."""
REPETITIONS = 7
RATE_SIGMA, EXAMPLES_PER_SECOND = 0.5, 100.0
"""Settings of the networks that runs are replayed on: uneven clients that train at the speed of a slow phone."""


class Tables(NamedTuple):
    """Figures of a suite. Each table has the columns task, partition, method, seed, but `coding` only task and method.

    Attributes:
        runs: A row for each finished cell: accuracy (a fraction, mean of the last ten evaluations), bytes up and down,
            bytes of the same messages dense, bits of an update's message for each parameter, seconds, code version.
        rounds: A row for each evaluated round of each cell: accuracy, and bytes since the start.
        targets: A row for each cell and target accuracy: first round whose smoothed accuracy reaches it, and bytes
            until then; empty where it is not reached.
        times: A row for each cell, target accuracy and network: virtual seconds until then, and an estimate of the
            clients' energy for messages in joules (docs/concepts/network.md); only where it is reached.
        coding: A row for each task and method: milliseconds on one thread to encode, and to decode and add, the update
            of a real client.
    """

    runs: pd.DataFrame
    rounds: pd.DataFrame
    targets: pd.DataFrame
    times: pd.DataFrame
    coding: pd.DataFrame

    def save(self, folder: Path) -> list[Path]:
        """Write each table as CSV and as Parquet, and all of them into results.json; return the paths."""
        paths = [folder / "results.json"]
        whole = {name: json.loads(table.to_json(orient="records")) for name, table in self._asdict().items()}
        write_atomically(paths[0], (json.dumps(whole, indent=1) + "\n").encode())
        for name, table in self._asdict().items():
            for path in (folder / f"{name}.csv", folder / f"{name}.parquet"):
                if path.suffix == ".csv":
                    table.to_csv(path, index=False)
                else:
                    table.to_parquet(path, index=False)
                paths.append(path)
        return paths


def measure(suite: Suite, cells: Sequence[Cell], store: CellStore) -> Tables:
    """Return the figures of all finished cells.

    Args:
        suite: The suite, for its targets and networks.
        cells: Its cells.
        store: Where their runs are stored.
    """
    runs: list[dict[str, Any]] = []
    rounds: list[dict[str, Any]] = []
    targets: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    timed: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        results = store.results(cell)
        if results is None:
            continue
        identity = {"task": cell.task, "partition": cell.partition, "method": cell.method, "seed": cell.seed}
        runs.append({**identity, **_run(results), "code": store.code(cell)})
        curve = _curve(results)
        rounds += [{**identity, **point} for point in curve]
        aims = suite.grids[cell.grid].targets
        reached = {aim: first_reaching(curve, aim) for aim in aims}
        targets += [{**identity, "target": aim, **first} for aim, first in reached.items()]
        ends = {aim: first["round"] for aim, first in reached.items() if first["round"] is not None}
        if ends:
            times += [{**identity, **row} for row in _times(store.folder(cell), cell, suite.networks, ends)]
        timed.setdefault((cell.task, cell.method), cell)
    coded = [
        {"task": task, "method": method, **coding(cell, store.folder(cell))} for (task, method), cell in timed.items()
    ]
    return Tables(*(pd.DataFrame(rows) for rows in (runs, rounds, targets, times, coded)))


def chance(task: Task, split: str) -> float | None:
    """Return the accuracy of naming the most frequent label, a fraction; None: targets are no labels.

    Args:
        task: Task with its data.
        split: Name of the part that models were evaluated on.
    """
    targets: Tensor = getattr(task.data(), split).targets
    labels = targets[task.scored(targets)]
    if targets.is_floating_point() or not len(labels):
        return None
    return float(np.unique(labels.numpy(), return_counts=True)[1].max()) / len(labels)


def cautions(cells: Sequence[Cell], runs: pd.DataFrame) -> list[str]:
    """Return a sentence on each task and partition where models have hardly learned.

    Args:
        cells: Cells of the suite.
        runs: Table of the finished ones.
    """
    sentences = []
    for task, partition in dict.fromkeys((cell.task, cell.partition) for cell in cells):
        scenario = next(cell.scenario for cell in cells if cell.task == task)
        finished = runs[(runs["task"] == task) & (runs["partition"] == partition)]
        guessed = chance(Workload(scenario).task, scenario.evaluation.split) if len(finished) else None
        if guessed is None:
            continue
        accuracies = finished.groupby("method")["accuracy"].mean()
        poor = accuracies[accuracies < guessed + NEAR_CHANCE * (1 - guessed)]
        if len(poor):
            sentences.append(
                f"{task}, {partition}, after {int(finished['rounds'].max())} rounds: models of {len(poor)} of"
                f" {len(accuracies)} methods are near chance ({poor.min():.1%} to {poor.max():.1%}, guessing gives"
                f" {guessed:.1%}): their bytes can be compared, their accuracies cannot"
            )
    return sentences


def _run(results: Results) -> dict[str, Any]:
    totals = results.totals
    replies = sum(done.replies + done.refused for done in results.rounds)
    return {
        "rounds": len(results.rounds),
        "parameters": results.model.parameters,
        "accuracy": results.accuracy,
        "up_bytes": totals.up_bytes,
        "down_bytes": totals.down_bytes,
        "total_bytes": totals.both_bytes,
        "dense_up_bytes": totals.dense_up_bytes,
        "dense_down_bytes": totals.dense_down_bytes,
        "up_bits_per_parameter": 8 * totals.up_bytes / replies / results.model.parameters if replies else None,
        "down_bits_per_parameter": 8 * totals.down_bytes / replies / results.model.parameters if replies else None,
        "seconds": results.seconds,
    }


def _curve(results: Results) -> list[dict[str, Any]]:
    """Return the evaluated rounds, with the run's bytes by their end."""
    return [
        {
            "round": point.round,
            "accuracy": point.accuracy,
            "up_bytes": point.up,
            "down_bytes": point.both - point.up,
            "total_bytes": point.both,
        }
        for point in series.points(results)
    ]


def first_reaching(curve: Sequence[dict[str, Any]], aim: float) -> dict[str, Any]:
    """Return round and bytes of the first evaluation at which the mean of the last few reaches an accuracy.

    Args:
        curve: Evaluated rounds in their order: round, accuracy (a fraction), up_bytes, down_bytes, total_bytes.
        aim: The accuracy, a fraction.

    Returns:
        The keys of the curve but for the accuracy; None for each where it is not reached.
    """
    for end in range(SMOOTHED, len(curve) + 1):
        if fmean(point["accuracy"] for point in curve[end - SMOOTHED : end]) >= aim:
            return {key: value for key, value in curve[end - 1].items() if key != "accuracy"}
    return {"round": None, "up_bytes": None, "down_bytes": None, "total_bytes": None}


def _times(folder: RunFolder, cell: Cell, names: Sequence[str], ends: Mapping[float, int]) -> Iterator[dict[str, Any]]:
    """Replay the run's messages on other networks; yield time and energy to each target."""
    columns = Ledger.load(folder.ledger).arrays()
    for name in names:
        settings = NetworkSettings(profile=name, rate_sigma=RATE_SIGMA, examples_per_second=EXAMPLES_PER_SECOND)
        link = Network(settings, seed=cell.seed)
        seconds = replay.virtual_seconds(folder.path, link)
        for aim, round in ends.items():
            before = Ledger()
            before.replace({key: column[columns["round"] <= round] for key, column in columns.items()})
            joules = link.joules_of(before)
            yield {"target": aim, "network": name, "seconds": seconds[round - 1], "joules": joules}


def coding(cell: Cell, folder: RunFolder) -> dict[str, float]:
    """Time the cell's encoder on the update of its first client, on one thread.

    Args:
        cell: A cell of the method.
        folder: Run folder of the cell, which has the initial mask, if any.
    """
    workload = Workload(cell.scenario)
    layout, update = workload.layout, codec_data.trained(cell.scenario)
    if (mask := first_mask(workload, folder)) is not None:
        layout, update = layout.within(mask), update[mask.positions]
    encoder, shared, total = workload.encoder, SideInfo(layout), np.zeros(layout.size)
    state = encoder.init(layout)
    encoding, decoding, payload = [], [], b""
    for number in range(REPETITIONS + 1):
        given = update.copy()
        began = time.perf_counter()
        payload, _, state = encoder.encode(given, state, shared, seeds.derive(cell.seed, "coding", number))
        encoded = time.perf_counter()
        payloads.decode(payload, shared).add_to(total)
        decoded = time.perf_counter()
        if number:  # the first is a warm-up
            encoding.append(encoded - began)
            decoding.append(decoded - encoded)
    return {
        "encode_ms": 1e3 * median(encoding),
        "decode_ms": 1e3 * median(decoding),
        "payload_bytes": len(payload),
    }
