"""The same two apps on Flower's own simulation engine, started as a user does: `flwr run .` in the root."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fedpress.compression.ledger import Ledger
from fedpress.simulations.deploy import flower_processes
from fedpress.simulations.engines.client_grid import EngineError
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.scenario import scenario

ROOT = Path(__file__).parents[3]
SCENARIO = """
name: on-flower
task: digits
clients: 4
rounds: 2
sampling: {clients_per_round: 2}
training: {batch_size: 16}
"""


@pytest.fixture
def flower_home(tmp_path: Path) -> Iterator[Path]:
    """A home for Flower; the SuperLink that `flwr run` leaves running there is stopped afterwards."""
    home = tmp_path / "flwr"
    home.mkdir()
    yield home
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"FLWR_HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.deployment
def test_flwr_run_trains_and_leaves_a_run_folder(tmp_path: Path, flower_home: Path) -> None:
    pytest.importorskip("ray", reason="Flower's simulation engine needs Ray: pip install 'flwr[simulation]'")
    flwr = Path(sys.executable).with_name("flwr")
    if not flwr.exists():
        pytest.skip("no flwr command beside this Python")
    app = tmp_path / "app"  # what a clone holds that the app needs, without this machine's .venv and runs
    app.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, app / name)
    for name in ("server", "client", "compression", "simulations"):
        shutil.copytree(ROOT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "scenario.yaml").write_text(SCENARIO)
    out = tmp_path / "run"
    command = [
        str(flwr), "run", ".", "--stream", "--federation-config", "num-supernodes=4",
        "--run-config", f'scenario="{tmp_path / "scenario.yaml"}" out="{out}"',
    ]  # fmt: skip
    ended = subprocess.run(
        command,
        cwd=app,
        env=flower_processes.environment(flower_home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert out.exists(), ended.stdout + ended.stderr
    run = RunFolder.open(out)
    results = run.load_results()
    assert results.status == "finished", ended.stdout + ended.stderr
    assert [(r.replies, r.refused) for r in results.rounds] == [(2, 0), (2, 0)]
    assert results.totals.up_bytes == Ledger.load(run.ledger).total(direction="up") > 0
    assert len(results.model.sha256) == 64 and run.model.exists()


@pytest.mark.parametrize(
    ("override", "key"), [("network=fibre", "network"), ("faults={lost: 0.1}", "faults"), ("network=wifi", "network")]
)
def test_what_needs_virtual_time_is_refused(override: str, key: str) -> None:
    pytest.importorskip("ray")
    from fedpress.simulations.engines import flower

    flower.check(scenario.load("digits"))
    with pytest.raises(EngineError, match=f"`{key}`, which needs the virtual time.*--set {key}=null"):
        flower.check(scenario.load("digits", [override]))


def test_a_cluster_that_is_not_there_is_named_at_once() -> None:
    pytest.importorskip("ray")
    from fedpress.simulations.engines import flower

    digits = scenario.load("digits")
    with pytest.raises(EngineError, match="no Ray cluster at 127.0.0.1:.*ray start --head"):
        flower.check(digits, f"127.0.0.1:{flower_processes.free_port()}")
    for wrong in ("10.0.0.1", "ray://10.0.0.1:10001", "10.0.0.1:port", ":6379"):
        with pytest.raises(EngineError, match=r"HOST:PORT or auto.*got"):
            flower.check(digits, wrong)
