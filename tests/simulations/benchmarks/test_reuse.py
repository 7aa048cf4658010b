"""The benchmark of reuse: its figures are those of positions that were really written."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedpress.compression.tensors.update import Dense, Sparse
from fedpress.compression.wire import payloads, positions, values
from fedpress.simulations.__main__ import main
from fedpress.simulations.benchmarks import reuse
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario import scenario

LAYOUT = Workload(scenario.load("digits")).layout
N = LAYOUT.size
A = np.arange(0, N, 1000)
B = np.concatenate([A[:90], A[90:] + 1])


def kept(path: Path, rounds: list[dict[int, np.ndarray]]) -> RunFolder:
    """A run folder with payloads of these supports, by round and node; values rise with the position."""
    folder = RunFolder.create(path)
    folder.write_scenario(scenario.load("digits").to_yaml())
    folder.results.write_text("{}")
    for round, by_node in enumerate(rounds, start=1):
        for node, support in by_node.items():
            update = Sparse(support, (1 + support).astype(np.float32), N)
            folder.save_payload(round, node, payloads.pack(update, LAYOUT, values.FLOAT32).payload)
    return folder


def test_each_reference_is_what_it_says(tmp_path: Path) -> None:
    folder = kept(tmp_path / "run", [{1: A, 10: B}, {10: A}, {2: A[:50], 10: A}])
    coded = reuse.run(folder.path)
    union = np.union1d(A, B)
    plain = len(positions.pack(A, N)[1])
    first = {one.reference: one for one in coded if one.round == 2}
    assert first["own"][2:] == ("own", len(A), len(B), 90, plain, len(positions.pack(A, N, B)[1]))
    assert first["union"][2:] == ("union", len(A), len(union), len(A), plain, len(positions.pack(A, N, union)[1]))
    # The largest of the sum: the first 90 places count twice, the others are larger the further back.
    total = Sparse(A, (1 + A).astype(np.float32), N).dense() + Sparse(B, (1 + B).astype(np.float32), N).dense()
    top = np.sort(np.argsort(-total, kind="stable")[: len(A)])
    assert first["top"][4:6] == (len(A), len(np.intersect1d(top, A)))
    assert first["top"].bytes == min(plain, len(positions.pack(A, N, top)[1]))
    third = {(one.node, one.reference): one for one in coded if one.round == 3}
    assert set(third) == {
        *((2, name) for name in ("union", "top")),
        *((10, name) for name in ("own", "union", "top", "correlated")),
    }
    assert third[10, "own"].known == len(A) and third[10, "own"].bytes == 12
    assert third[2, "union"].held == len(A) and third[2, "top"].held == 50


def test_the_command_prints_the_means_and_writes_every_payload(tmp_path: Path) -> None:
    folder = kept(tmp_path / "run", [{1: A}, {1: A}, {1: B}])
    done = CliRunner().invoke(main, ["bench", "reuse", str(folder.path), "--json", str(tmp_path / "figures.json")])
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    own, union, top, _ = figures["references"]
    assert own == {**union, "reference": "own"} == {**top, "reference": "own"}  # with one client they are the same
    sizes = [len(positions.pack(A, N)[1]), len(positions.pack(B, N)[1])]
    assert own["plain_bits"] == 8 * sum(sizes) / (2 * len(A))
    assert own["bits"] == 8 * (12 + len(positions.pack(B, N, A)[1])) / (2 * len(A))
    assert own["known"] == (len(A) + 90) / (2 * len(A)) and own["shorter"] == 1.0
    assert own["gain"] == pytest.approx(1 - own["bits"] / own["plain_bits"])
    assert len(figures["payloads"]) == 8 and figures["payloads"][0]["round"] == 2
    assert done.stdout.splitlines()[1].split()[:3] == ["own", "2", f"{own['known']:.1%}"]


def test_a_correlated_support_keeps_nine_tenths_of_the_last_one(tmp_path: Path) -> None:
    other = A + 7  # nothing in common with A
    (one,) = [c for c in reuse.run(kept(tmp_path / "a", [{1: A}, {1: other}]).path) if c.reference == "correlated"]
    fresh = round(0.1 * len(A))
    assert (one.entries, one.held, one.known) == (len(A), len(A), len(A) - fresh)
    assert one.plain_bytes == len(positions.pack(other, N)[1]) and one.bytes < one.plain_bytes / 3
    # Nothing new to send: the part inside is all there is.
    (one,) = [c for c in reuse.run(kept(tmp_path / "b", [{1: A}, {1: A}]).path) if c.reference == "correlated"]
    assert one.entries == one.known == len(A) - fresh


def test_runs_without_anything_to_compare_are_named(tmp_path: Path) -> None:
    with pytest.raises(reuse.ReuseError, match="holds no payloads; run it with .* --keep-payloads"):
        reuse.run(kept(tmp_path / "none", []).path)
    with pytest.raises(reuse.ReuseError, match="two rounds or more"):
        reuse.run(kept(tmp_path / "one", [{1: A}]).path)
    dense = kept(tmp_path / "dense", [])
    for round in (1, 2):
        dense.save_payload(round, 1, payloads.pack(Dense(np.zeros(N, np.float32)), LAYOUT, values.INT8).payload)
    with pytest.raises(reuse.ReuseError, match="the encoder must send some of the entries"):
        reuse.run(dense.path)
