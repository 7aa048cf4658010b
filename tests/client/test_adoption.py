"""A stock Flower app becomes a fedpress app by two changed lines (and the imports of the two names)."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp import ServerApp

from fedpress.compression import entry_points
from fedpress.simulations.engines import inline
from fedpress.simulations.engines.inline import InlineGrid

APPS = Path(__file__).parents[1] / "apps"


def run(client_app: str, server_app: ServerApp, folder: Path, rounds: int) -> dict[str, Any]:
    config = {
        "num-server-rounds": rounds,
        "model-path": str(folder / "model.pt"),
        "report-path": str(folder / "report.json"),
    }
    with InlineGrid(client_app, clients=6, workers=1, run_config=config) as grid:
        inline.run(server_app, grid, config)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def adopt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the two changed files: the changes that the README shows, and no others."""
    changes = {
        "client": (
            "app = ClientApp()",
            "app = ClientApp(mods=[compress(error_feedback(sparse(top_k(0.02), TERNARY)))])",
            "from fedpress.client.mod import compress\n"
            "from fedpress.compression.encoders.encoder import sparse\n"
            "from fedpress.compression.encoders.error_feedback import error_feedback\n"
            "from fedpress.compression.encoders.selection import top_k\n"
            "from fedpress.compression.wire.values import TERNARY\n",
        ),
        "server": (
            "    strategy = FedAvg(fraction_train=0.5)",
            "    strategy = SparseFed(fraction_train=0.5)",
            "from fedpress.server.strategies.sparse_fed import SparseFed\n",
        ),
    }
    for side, (line, changed, imports) in changes.items():
        source = (APPS / f"stock_{side}.py").read_text()
        assert source.count(line) == 1
        source = source.replace(line, changed).replace("\nfrom stock_task", f"\n{imports}from stock_task", 1)
        (folder / f"adopted_{side}.py").write_text(source)
        monkeypatch.delitem(sys.modules, f"adopted_{side}", raising=False)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.long
def test_two_changed_lines_keep_the_accuracy_and_shrink_the_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(APPS))
    stock = run("stock_client:app", entry_points.load("stock_server:app"), tmp_path, rounds=20)
    adopt(tmp_path, monkeypatch)
    adopted = run("adopted_client:app", import_module("adopted_server").app, tmp_path, rounds=20)
    assert stock["accuracy"] > 0.85
    assert adopted["accuracy"] > stock["accuracy"] - 0.03
    assert adopted["evaluations"] == 20
    assert adopted["replies"] == 20 * 3
    dense = 4 * (64 * 128 + 128 + 2 * 128 + 128 * 64 + 64 + 64 * 10 + 10)
    assert adopted["up"] / adopted["replies"] < dense / 30  # 2 % ternary, and batch norm's buffers in full
