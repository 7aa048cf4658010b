"""The benchmark of memory: a leak is seen, noise and steps at the beginning are not taken for one."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedpress.simulations.__main__ import main
from fedpress.simulations.benchmarks import memory as memory_bench
from fedpress.simulations.benchmarks.memory import BOOKS, MemoryBenchError, fit

ROUNDS = list(range(1, 201))
NOISE = np.random.default_rng(1).normal(0, 300_000, 200)


def memory(slope: float) -> list[int]:
    """Bytes after each round: caches that fill in the first rounds, noise, and a slope."""
    rounds = np.array(ROUNDS)
    return [int(value) for value in 4e8 + 5e7 * np.minimum(rounds, 20) / 20 + slope * rounds + NOISE]


@pytest.mark.parametrize("slope", [20_000, 100_000])
def test_a_leak_is_seen_and_measured(slope: float) -> None:
    line = fit(ROUNDS, memory(slope))
    assert line.grows
    assert line.slope == pytest.approx(slope, abs=4_000)
    assert line.scatter == pytest.approx(300_000, rel=0.2)


@pytest.mark.parametrize("slope", [-50_000, 0, BOOKS / 2])
def test_noise_the_books_and_the_warm_up_are_no_leak(slope: float) -> None:
    assert not fit(ROUNDS, memory(slope)).grows


def test_a_step_of_the_allocator_is_no_leak() -> None:
    stepped = [value + 12_000_000 * (number > 125) for number, value in zip(ROUNDS, memory(0), strict=True)]
    line = fit(ROUNDS, stepped)
    assert not line.grows
    assert abs(line.slope) < BOOKS


def test_a_steep_line_of_few_noisy_rounds_is_no_leak() -> None:
    line = fit(ROUNDS[:15], memory(0)[50:65])
    assert not line._replace(slope=BOOKS + 1).grows


def test_too_few_rounds_are_refused_before_the_run() -> None:
    done = CliRunner().invoke(main, ["bench", "memory", "--rounds", "12"])
    assert done.exit_code == 2
    assert "12 rounds are too few for a line; expected at least 13" in done.stderr


def test_a_process_that_is_not_there_is_named() -> None:
    with pytest.raises(MemoryBenchError, match="process 0 cannot be read"):
        memory_bench.resident(0)
    assert memory_bench.resident(os.getpid()) > 10_000_000


KEEPS = """
import numpy as np
from fedpress.simulations.benchmarks import memory as memory_bench
from fedpress.simulations.results.records import RoundResult
sampler, kept = memory_bench.Sampler(), []
for number in range(1, 31):
    kept.append(np.ones(1 << 20))  # 8 MiB, and written to
    sampler.on_round(RoundResult(round=number, accuracy=None, loss=None, up_bytes=0, down_bytes=0, replies=0,
                                 refused=0, reasons={}, virtual_seconds=0.0))
server = sampler.processes()[0]
assert (server.name, server.rounds) == ("server", list(range(1, 31)))
assert server.line.grows and abs(server.line.slope / (1 << 23) - 1) < 0.2, server
"""


@pytest.mark.slow
def test_the_sampler_sees_what_a_process_keeps() -> None:
    """In a process of its own: this one gives back what other tests have left."""
    done = subprocess.run([sys.executable, "-c", KEEPS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_the_command_measures_server_and_workers_and_draws_them(tmp_path: Path) -> None:
    plot, file = tmp_path / "memory.svg", tmp_path / "figures.json"
    small = [
        "--rounds",
        "13",
        "--set",
        "clients=4",
        "--set",
        "sampling.clients_per_round=2",
        "--set",
        "training.epochs=1",
    ]
    done = CliRunner().invoke(main, ["bench", "memory", *small, "--plot", str(plot), "--json", str(file)])
    assert done.exit_code == 0, done.output
    figures = json.loads(file.read_text())
    names = [one["name"] for one in figures["processes"]]
    assert names == ["server", *(f"worker {number}" for number in range(1, len(names)))] and len(names) > 1
    for one in figures["processes"]:
        assert one["rounds"] == list(range(1, 14)) and min(one["memory"]) > 50_000_000
        assert one["verdict"] in ("flat", "growing") and one["line"]["rounds"] == 10
    texts = {text for element in ElementTree.parse(plot).iter() if (text := (element.text or "").strip())}
    assert {"round", "resident memory", "warm-up ends"} <= texts
    assert [name for name in names if not any(text.startswith(f"{name}: ") for text in texts)] == []
    assert "var(" not in plot.read_text()
