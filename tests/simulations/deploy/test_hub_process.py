"""The hub's process is started when there is something to serve, and again after it has ended."""

import time
from pathlib import Path

import pytest

from fedpress.simulations.deploy import hub_process, settings
from fedpress.simulations.deploy.hub_process import HubProcess
from fedpress.simulations.results.run_folder import RunFolder


def test_it_starts_with_the_folder_of_bundles_and_again_after_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_process, "AGAIN_SECONDS", 0.0)
    said: list[str] = []
    chosen = settings.ServerSettings(scenario="digits", state=str(tmp_path), hub=["sh", "-c", "echo no port; exit 3"])
    folder = RunFolder(tmp_path / "run")
    hub = HubProcess(chosen, folder, tmp_path / "flwr", said.append)
    hub.keep()
    assert hub.starts == 0  # nothing to serve yet
    folder.bundles.mkdir(parents=True)
    until = time.monotonic() + 60.0
    while hub.starts < 2 and time.monotonic() < until:
        hub.keep()
        time.sleep(0.05)
    hub.stop()
    assert hub.starts == 2 and said == ["the hub has ended (exit code 3): no port; it starts again"]
