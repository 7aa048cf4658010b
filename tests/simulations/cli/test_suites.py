"""`fedpress bench communication`: real runs, kept, gone on with, and told apart from what was not run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.suites import measures, suite
from fedpress.simulations.suites.cells import CellStore

COMMAND = [sys.executable, "-m", "fedpress.simulations", "bench", "communication"]
BROKEN = """
from fedpress.simulations.tasks.digits import Digits

class Broken(Digits):
    def loss(self, outputs, targets):
        raise ValueError("this loss is broken")
"""
SUITE = """
grids:
  - scenario: digits
    set: [rounds=4, training.epochs=1, sampling.clients_per_round=2, clients=4, partition.sizes=equal]
    methods: [fp16, fedpress]
    seeds: 1
    targets: [0.05, 0.99]
  - scenario: broken.yaml
    methods: [fedpress]
    seeds: 1
"""


def run(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip


def write(folder: Path) -> None:
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "task.py").write_text(BROKEN)
    (folder / "broken.yaml").write_text(
        "task: task:Broken\nclients: 2\nrounds: 2\nsampling: {clients_per_round: 2}\n"
        "training: {epochs: 1}\npartition: {sizes: equal}\n"
    )


def figures(folder: RunFolder) -> object:
    results = folder.load_results()
    return results.model.sha256, [(one.accuracy, one.up_bytes, one.down_bytes) for one in results.rounds]


@pytest.mark.long
@pytest.mark.slow
def test_a_suite_is_interrupted_goes_on_and_is_not_run_twice(tmp_path: Path) -> None:
    write(tmp_path)
    cells = suite.load(tmp_path / "suite.yaml").cells(folder=tmp_path)
    store = CellStore(tmp_path / "out")
    first = store.folder(cells[0])

    begun = run(tmp_path, "suite.yaml", "--out", "out", "--jobs", "1")
    patience = time.monotonic() + 120
    while not (first.results.exists() and json.loads(first.results.read_text())["rounds"]):
        assert begun.poll() is None and time.monotonic() < patience
        time.sleep(0.05)
    begun.send_signal(signal.SIGTERM)  # Ctrl-C comes as the same exception
    output, said = begun.communicate(timeout=60)
    assert begun.returncode == 130 and said.strip().splitlines()[-1] == "interrupted", output + said
    cut_off = first.load_results()
    assert cut_off.status == "interrupted" and 1 <= len(cut_off.rounds) < 4
    listed = subprocess.run(["ps", "-eo", "stat=,args="], capture_output=True, text=True).stdout
    assert not [line for line in listed.splitlines() if str(tmp_path) in line and line[0] != "Z"]

    output, said = run(tmp_path, "suite.yaml", "--out", "out").communicate(timeout=240)
    assert "3 run(s)" not in said and "1 run(s) have no figures, 1 of them failed" in said, output + said
    assert "this loss is broken" in output or "failed: " in output
    assert figures(first)[1][: len(cut_off.rounds)] == [  # type: ignore[index]
        (one.accuracy, one.up_bytes, one.down_bytes) for one in cut_off.rounds
    ]
    assert not first.model.exists() and len(first.load_results().rounds) == 4

    # The tables say what the runs' own files say.
    runs = pd.read_csv(tmp_path / "out" / "runs.csv")
    pd.testing.assert_frame_equal(runs, pd.read_parquet(tmp_path / "out" / "runs.parquet"), check_dtype=False)
    assert list(runs["method"]) == ["fp16", "fedpress"]
    for cell, row in zip(cells, runs.itertuples(), strict=False):
        results = store.folder(cell).load_results()
        assert (row.accuracy, row.up_bytes) == (pytest.approx(results.accuracy), results.totals.up_bytes)
        assert results.totals.up_bytes == sum(one.up_bytes for one in results.rounds)
    assert 16 < runs["up_bits_per_parameter"][0] < 16.5 and runs["up_bits_per_parameter"][1] < 0.3
    rounds = pd.read_csv(tmp_path / "out" / "rounds.csv")
    ends = rounds.groupby("method", sort=False).last()
    assert list(ends["total_bytes"]) == list(runs["total_bytes"]) and list(ends["round"]) == [4, 4]
    targets = pd.read_csv(tmp_path / "out" / "targets.csv").set_index(["method", "target"])
    assert targets.loc[("fp16", 0.05), "round"] == measures.SMOOTHED and pd.isna(targets.loc[("fp16", 0.99), "round"])
    whole = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["accuracy"] for one in whole["runs"]] == pytest.approx(list(runs["accuracy"]))
    times = pd.read_csv(tmp_path / "out" / "times.csv").set_index(["method", "network"])
    assert (times["target"] == 0.05).all() and times.loc[("fp16", "3g"), "seconds"] > times.loc[
        ("fedpress", "3g"), "seconds"
    ]
    coding = pd.read_csv(tmp_path / "out" / "coding.csv")
    assert (coding["encode_ms"] > 0).all() and (coding["decode_ms"] > 0).all()
    text = (tmp_path / "out" / "report.html").read_text()
    assert "not run at all: broken, dirichlet-0.5" in text
    assert "float16" in text and "Not run, or not with all seeds" not in text.split('id="broken')[0]
    assert "http" not in text.replace("http://www.w3.org", "")
    for name in ("accuracy-over-bytes-both", "pareto", "up-and-down", "bytes-to-5", "time-to-5"):
        assert (tmp_path / "out" / "figures" / f"digits-dirichlet-0_5-{name}.png").stat().st_size > 5000

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("results.json")}
    done = run(tmp_path, "suite.yaml", "--out", "out", "--only", "fp16")
    output, said = done.communicate(timeout=120)
    assert done.returncode == 0 and "1 of 1 runs" in output, output + said
    caution = "after 4 rounds: models of 1 of 1 methods are near chance"
    assert caution in output and caution in (tmp_path / "out" / "report.html").read_text()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("results.json")}


def test_what_is_wrong_is_said_before_anything_runs(tmp_path: Path) -> None:
    write(tmp_path)
    for arguments, said in (
        (["suite.yaml", "--only", "fp61"], "did you mean 'fp16'?"),
        (["suite.yaml", "--seeds", "a"], "error: --seeds: got 'a', expected a range"),
        (["no.yaml"], "there is no such file"),
    ):
        done = run(tmp_path, *arguments)
        output, error = done.communicate(timeout=60)
        assert done.returncode == 2 and said in error and not output
    assert not (tmp_path / "runs").exists()
