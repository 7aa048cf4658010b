"""What a suite measures, as tidy tables: a row for each run, for each evaluated round, for each accuracy aimed at."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedpress.compression import seeds
from fedpress.compression.files import write_atomically
from fedpress.compression.ledger import Ledger
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
from fedpress.simulations.suites.cells import Store
from fedpress.simulations.suites.suite import Cell, Suite

SMOOTHED = 3
"""Evaluations whose mean must reach an accuracy that is aimed at: one alone swings by points."""
REPETITIONS = 7
RATE_SIGMA, EXAMPLES_PER_SECOND = 0.5, 100.0
"""Of the networks that runs are replayed on: clients are uneven, and train as fast as a slow phone."""
IDENTITY = ("task", "partition", "method", "seed")
"""The columns that name a cell, in every table."""


class Tables(NamedTuple):
    """The figures of a suite.

    Attributes:
        runs: a row for each finished cell: accuracy (a fraction: mean of the last ten evaluations), bytes of its
            messages up and down, of the same messages dense, bits that an update's message takes for each parameter,
            seconds, the code that made it.
        rounds: a row for each evaluated round of each cell: accuracy, and bytes since the start.
        targets: a row for each cell and accuracy aimed at: the first round whose smoothed accuracy reaches it, and
            bytes until then; empty where it was not reached.
        times: a row for each cell, accuracy aimed at and network: virtual seconds until then, and what the clients'
            devices had spent on messages by estimate, in joules (docs/concepts/network.md); only where it was reached.
        coding: a row for each task and method: milliseconds on one thread to encode and to decode and add the update
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


def measure(suite: Suite, cells: Sequence[Cell], store: Store) -> Tables:
    """Return the figures of all cells that are finished; the others have no rows."""
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
        targets += [{**identity, "target": aim, **found} for aim, found in reached.items()]
        ends = {aim: found["round"] for aim, found in reached.items() if found["round"] is not None}
        if ends:
            times += [{**identity, **row} for row in _times(store.folder(cell), cell, suite.networks, ends)]
        timed.setdefault((cell.task, cell.method), cell)
    coded = [
        {"task": task, "method": method, **coding(cell, store.folder(cell))} for (task, method), cell in timed.items()
    ]
    return Tables(*(pd.DataFrame(rows) for rows in (runs, rounds, targets, times, coded)))


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
    """The evaluated rounds, with the bytes that the run had cost by their end."""
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
    """Replay the run's messages on other networks."""
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
    """Time the cell's encoder on the update that its first client makes, alone on one thread.

    Args:
        cell: of the method.
        folder: of its run, which has the mask that it began with, if any.
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
        if number:  # the first meets empty caches
            encoding.append(encoded - began)
            decoding.append(decoded - encoded)
    return {
        "encode_ms": 1e3 * median(encoding),
        "decode_ms": 1e3 * median(decoding),
        "payload_bytes": len(payload),
    }
