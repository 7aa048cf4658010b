"""The benchmark of warm nodes: its table, and the real thing."""

import json
from pathlib import Path

import pytest
from tests.apps.command_line import invoke

from fedpress.simulations.benchmarks import warm
from fedpress.simulations.benchmarks.warm import Idle, WarmFigures, WarmRow

FIGURES = WarmFigures(
    2, 8,
    [
        WarmRow("plain", False, 4.0, 6.0), WarmRow("ours", False, 5.0, 8.0),
        WarmRow("plain", True, 1.0, 0.6), WarmRow("ours", True, 1.5, 1.2),
    ],
    [Idle(False, 100e6, 0.0, 3.0), Idle(True, 400e6, 300e6, 4.0)],
)  # fmt: skip


def test_each_app_has_a_row_with_both_nodes_beside_plain_flower() -> None:
    assert warm.rows(FIGURES) == [
        ("plain", "4.0 s", "1.0 s", "6.00 s", "0.60 s", "10%"),
        ("ours", "5.0 s", "1.5 s", "8.00 s", "1.20 s", "20%"),
    ]
    assert len(warm.COLUMNS) == 6


def test_memory_of_waiting_nodes_is_below_the_table() -> None:
    (plain, cold), (warmed, text) = warm.facts(FIGURES)
    assert (plain, cold) == ("a plain node that waits", "100 MB; 3 ms of processor time a second")
    assert (warmed, text) == (
        "a warm node that waits", "400 MB, 300 MB of it the trainer's; 4 ms of processor time a second",
    )  # fmt: skip
    assert json.loads(json.dumps(warm.as_json(FIGURES)))["rows"][2]["warm"] is True


@pytest.mark.slow
@pytest.mark.deployment
def test_a_warm_node_takes_less_processor_time(tmp_path: Path) -> None:
    changes = ["--set", "training.epochs=1", "--set", "partition.sizes=equal"]
    options = ["--nodes", 2, "--rounds", 2, "--idle", 2, *changes]
    done = invoke("bench", "warm", *options, "--json", tmp_path / "warm.json")
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "warm.json").read_text())["rows"]
    assert len(rows) == 6
    cold, warmed = ({row["app"]: row["cpu_seconds"] for row in rows if row["warm"] is which} for which in (False, True))
    assert cold.keys() == warmed.keys() and all(warmed[app] < cold[app] / 2 for app in cold)
