"""The Flower app that a service runs: a user's own, or one that is written for a scenario once that is checked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fedpress.compression.files import write_atomically
from fedpress.simulations.deploy import flower_processes, settings
from fedpress.simulations.deploy.children import ServiceError
from fedpress.simulations.results import start
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.scenario import scenario as scenarios
from fedpress.simulations.scenario.scenario import Scenario

APPS = {"workload": "fedpress.simulations.runs.job:load", "plan": "fedpress.simulations.runs.plan:load"}
"""Configuration of fedpress's apps: references to the clients' and the server's work, which import torch."""
FORECAST = "forecast.json"
"""File in the state folder: what the check of the scenario has found, also for starts that go on with the run."""


class RunApp(NamedTuple):
    """An app to run.

    Attributes:
        folder: Its folder.
        nodes: Number of nodes that it waits for; 0: not known.
    """

    folder: Path
    nodes: int


def write(
    chosen: settings.ServerSettings,
    folder: RunFolder,
    home: Path,
    say: Callable[[str], None],
    interrupted: Callable[[], bool],
) -> RunApp:
    """Return the folder of the Flower app to run; for a scenario the app is written first.

    Args:
        chosen: Settings of the service.
        folder: Run folder.
        home: FLWR_HOME of the service.
        say: Called with each line for the user.
        interrupted: Waits a moment, and returns whether the service is to stop.

    Raises:
        ScenarioError: The scenario is not valid.
        ServiceError: The run would fail.
        RunFolderError: The run folder holds something else.
        SettingsError: The app's folder is no Flower app, or a value holds a quotation mark.
    """
    if chosen.app is not None:
        if not (Path(chosen.app) / "pyproject.toml").is_file():
            raise settings.SettingsError(f"app: {chosen.app} holds no pyproject.toml, so it is no Flower app")
        return RunApp(Path(chosen.app), 0)
    assert chosen.scenario is not None  # the settings' own check
    state = Path(chosen.state)
    scenario = scenarios.load(chosen.scenario, chosen.overrides)
    if not start.goes_on(folder, scenario):  # the app would refuse the same, in every attempt
        _check(scenario, state, folder, home, say, interrupted)
    text = scenario.to_json()
    if "'" in text + chosen.out:
        raise settings.SettingsError("scenario and out: must hold no ', which Flower cannot pass on")
    shutil.rmtree(state / "app", ignore_errors=True)
    written = flower_processes.write_app(
        state / "app",
        "fedpress-run",
        "fedpress.server.app:app",
        "fedpress.client.app:app",
        {**APPS, "scenario": text, "out": str(folder.path), "checked": 1},
    )
    return RunApp(written, scenario.clients)


def _check(
    scenario: Scenario,
    state: Path,
    folder: RunFolder,
    home: Path,
    say: Callable[[str], None],
    interrupted: Callable[[], bool],
) -> None:
    """Check data, model and settings before anything starts, in a process of its own: this one needs no torch.

    Raises:
        ServiceError: The run would fail.
    """
    file, log = state / "scenario.yaml", state / "check.log"
    write_atomically(file, scenario.to_yaml().encode())
    say("checking the scenario")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fedpress.simulations",
                "simulate",
                str(file),
                "--check",
                "--json",
                str(state / FORECAST),
                "--out",
                str(folder.path),
            ],
            env=flower_processes.environment(home),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    ended = False
    while not ended:
        ended = process.poll() is not None
        if interrupted():  # also where the signal has ended the process, too
            process.kill()
            process.wait()
            return
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    for line in lines:
        if line.startswith("note: "):
            say(line)
    if process.returncode:
        first = next((number for number, line in enumerate(lines) if line.startswith("error: ")), -1)
        text = "\n".join(lines[first:]) or f"it ended with exit code {process.returncode}"
        raise ServiceError(f"the scenario cannot be run: {text.removeprefix('error: ')}")
