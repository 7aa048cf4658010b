"""TensorBoard's own reader finds a run's figures in its event files, also after the run has gone on."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedpress.simulations.__main__ import main
from fedpress.simulations.results.records import Results
from fedpress.simulations.results.run_folder import RunFolder

pytest.importorskip("tensorboard", reason="TensorBoard is not installed: the extra `tensorboard`")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SHORT = ["digits", "--set", "rounds=6", "--set", "clients=6", "--set", "sampling.clients_per_round=4",
         "--set", "training.epochs=1", "--set", "students.tiers=[]", "--set", "partition.sizes=equal",
         "--set", "evaluation.every=2", "--set", "faults={diverges: 0.3}"]  # fmt: skip


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    (file,) = (run / "tensorboard").iterdir()
    events: Any = EventAccumulator(str(file))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(results: Results) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    up = down = 0
    for one in results.rounds:
        up, down = up + one.up_bytes, down + one.down_bytes
        row = {
            "accuracy": (one.round, one.accuracy), "loss": (one.round, one.loss), "bytes/up": (one.round, up),
            "bytes/down": (one.round, down), "replies/accepted": (one.round, one.replies),
            "replies/refused": (one.round, one.refused), "accuracy_over_bytes/up": (up, one.accuracy),
            "accuracy_over_bytes/up_and_down": (up + down, one.accuracy),
        }  # fmt: skip
        for tag, (step, value) in row.items():
            if value is not None:
                found.setdefault(tag, []).append((step, value))
    return found


def check(run: Path) -> Results:
    results = RunFolder(run).load_results()
    found, wanted = scalars(run), expected(results)
    assert found.keys() == wanted.keys()
    for tag, points in wanted.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in points], tag
        assert [value for _, value in found[tag]] == pytest.approx([value for _, value in points], rel=1e-6), tag
    return results


@pytest.mark.long
@pytest.mark.slow
def test_a_run_that_is_interrupted_and_goes_on_has_each_round_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedpress.simulations", "simulate"]
    run = tmp_path / "run"
    process = subprocess.Popen(
        [*command, *SHORT, "--tensorboard", "--out", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(run.glob("tensorboard/*")) or "accuracy" not in scalars(run):
            assert process.poll() is None and time.monotonic() < deadline, process.stdout and process.stdout.read()
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)  # while it goes on, the file could be read already
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    check(run)
    done = subprocess.run(
        [*command, "--resume", str(run), "--tensorboard"], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    results = check(run)
    assert results.status == "finished" and len(results.rounds) == 6
    assert sum(one.refused for one in results.rounds) > 0
    live = scalars(run)
    report = CliRunner().invoke(main, ["report", str(run), "--tensorboard"])  # of the run that is over, the same
    assert report.exit_code == 0 and str(run / "tensorboard") in report.stdout
    assert scalars(run) == live
    RunFolder(run).save_results(results.model_copy(update={"status": "running"}))
    report = CliRunner().invoke(main, ["report", str(run), "--tensorboard"])  # would take the file from who writes it
    assert report.exit_code == 2 and "it is still going on, or it was killed" in report.stderr
    assert scalars(run) == live
