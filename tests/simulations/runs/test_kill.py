"""Nothing is lost when a run is killed: SIGKILL at random moments, again and again, and the same model at the end.

For more kills than the suite has time for: FEDPRESS_KILLS=100 pytest -s tests/simulations/runs/test_kill.py
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedpress.compression.ledger import Ledger
from fedpress.simulations.results.records import MEASURED
from fedpress.simulations.results.run_folder import RunFolder

KILLS = int(os.environ.get("FEDPRESS_KILLS", "2"))
SEED = int(os.environ.get("FEDPRESS_KILL_SEED", "1"))
COMMAND = [sys.executable, "-m", "fedpress.simulations", "simulate"]
# Small, and with all that a checkpoint must carry: late replies under way, an optimizer with state, deltas, students.
SCENARIO = [
    "clients=6",
    "rounds=8",
    "training.epochs=1",
    "partition.sizes=equal",
    "sampling={clients_per_round: 3, over_selection: 1, deadline: 6.0}",
    "server={optimizer: adam, learning_rate: 0.01}",
    "network={up_mbit: 1, down_mbit: 4, examples_per_second: 50, latency: 0.1, rate_sigma: 0.6, dropout: 0.05}",
    "students={tiers: [{name: phone, parameters: 6000}], distill: {epochs: 1}, every: 4}",
]


class Ended(NamedTuple):
    """A process that ended by itself or was killed."""

    killed: bool
    seconds: float
    output: str


class Moment(NamedTuple):
    """When a process is killed."""

    seconds: float
    working: bool  # counted from the first client's answer, else from the start


def start(run: Path, workers: int, budget: float) -> subprocess.Popen[bytes]:
    """Begin the run, or go on with it where it has begun."""
    settings = [*SCENARIO, f"workers={workers}", f"checkpoint_budget={budget}"]
    changes = [word for change in settings for word in ("--set", change)]
    arguments = ["--resume", str(run)] if (run / "scenario.yaml").exists() else ["--out", str(run), *changes]
    with (run.parent / "output").open("wb") as output:
        return subprocess.Popen([*COMMAND, *arguments], stdout=output, stderr=output, start_new_session=True)


def alive(session: int) -> str:
    """The processes of a session that are still there, but for those that only wait to be reaped."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=,args=", "--sid", str(session)], capture_output=True, text=True)
    return "\n".join(line for line in listed.stdout.splitlines() if line.split()[1][0] != "Z")


def answers(run: Path) -> int:
    return (run / "run.log").read_text().count(" answered in ") if (run / "run.log").exists() else 0


def go_on(run: Path, moment: Moment | None, whole_group: bool = True, workers: int = 1, budget: float = 1.0) -> Ended:
    """Start or resume; kill the whole group, or the parent alone, at some moment."""
    began, before = time.monotonic(), answers(run)
    process = start(run, workers, budget)
    while moment and moment.working and answers(run) == before and process.poll() is None:
        time.sleep(0.01)
    try:
        code: int | None = process.wait(timeout=moment.seconds if moment else 120)
    except subprocess.TimeoutExpired:
        code = None
        os.killpg(process.pid, signal.SIGKILL) if whole_group else process.kill()
        process.wait()
    output = (run.parent / "output").read_text()
    assert code in (None, 0), output
    patience = time.monotonic() + 10
    while left := alive(process.pid):
        assert time.monotonic() < patience, f"left behind by a killed run: {left}"
        time.sleep(0.05)
    return Ended(code is None, time.monotonic() - began, output)


def finished(run: Path) -> bool:
    folder = RunFolder(run)
    return folder.results.exists() and folder.load_results().status == "finished"


def figures(run: Path) -> dict[str, Any]:
    """All that must not depend on whether a run was disturbed."""
    folder = RunFolder.open(run)
    results = folder.load_results()
    assert results.status == "finished"
    kept = results.model_dump(exclude=MEASURED)
    kept["scenario"].pop("workers")
    kept["scenario"].pop("checkpoint_budget")
    return {**kept, "ledger": sorted(Ledger.load(folder.ledger).rows), "model file": folder.model.read_bytes()}


@pytest.mark.long
@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    undisturbed = go_on(tmp_path / "undisturbed", None, workers=2)
    expected = figures(tmp_path / "undisturbed")
    assert expected["students"] and sum(one["refused"] for one in expected["rounds"])
    assert not (tmp_path / "undisturbed" / "state").exists()
    kills = runs = begun = journaled = 0
    cut = []
    while kills < KILLS:
        run = tmp_path / f"run-{runs}"
        budget = runs % 2  # every second one without a journal
        while True:
            before = len(list(run.glob("state/server/*.safetensors")))
            journaled += any(run.glob("state/server/*.journal"))
            # The last run is let go to its end once enough kills are done.
            working = draw.random() < 0.75
            moment = Moment(
                draw.uniform(0, draw.choice([0.3, 2, 8])) if working else draw.uniform(0.5, undisturbed.seconds / 2),
                working,
            )
            whole_group = draw.random() < 0.5
            ended = go_on(run, moment if kills < KILLS else None, whole_group, budget=budget)
            if not ended.killed:
                assert not list(run.rglob(".*")), "temporary files are left behind"
                break
            kills += 1
            begun += before > 0
            log = (run / "run.log").read_text() if (run / "run.log").exists() else ""
            cut.append(log.count(": 3 replies, "))
            if finished(run):
                break  # killed while it wrote its report
        assert figures(run) == expected
        runs += 1
    print(f"\n{kills} kills over {runs} runs of {undisturbed.seconds:.1f} s, {begun} in processes that had gone on")
    print(f"{journaled} processes went on from a journal")
    print(f"rounds in the log at each kill: {cut}")
    print(f"every run ended with SHA-256 {expected['model']['sha256']}")
