"""Whole runs from Python and from notebooks: `fedpress.simulate` and `fedpress.load_run`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from fedpress.server.rounds.outcome import RunFailed
from fedpress.simulations.cli.progress import Display
from fedpress.simulations.report.run_result import RunResult
from fedpress.simulations.results import start
from fedpress.simulations.runs import launch
from fedpress.simulations.runs.observer import Observer
from fedpress.simulations.scenario import scenario as scenarios


def simulate(
    scenario: str | Path = "digits",
    *,
    out: Path | str | None = None,
    resume: Path | str | None = None,
    progress: bool = True,
    engine: launch.Engine = "inline",
    ray_address: str | None = None,
    tensorboard: bool = False,
    keep_payloads: bool = False,
    keep_state: bool = False,
    **keys: Any,
) -> RunResult:
    """Run a scenario in worker processes on this machine, and return its result.

        result = fedpress.simulate("digits", rounds=20, **{"partition.alpha": 0.1})
        result                                       # in a notebook: figures and curves
        result.rounds["accuracy"].plot()

    Args:
        scenario: Name of a scenario that comes with fedpress, a YAML file, or a folder with a scenario.yaml.
        out: Path of the run folder, new or empty; None: a new one under `runs/`.
        resume: Folder of a run that was stopped, to go on with; then no scenario, keys or `out`.
        progress: Show a progress bar, in a notebook as on a terminal, and on a terminal each round.
        engine: "inline", or "flower": Flower's own simulation engine on Ray; needs the extra `cluster`.
        ray_address: With Flower's engine, address of the Ray cluster; None: this machine.
        tensorboard: Write event files for TensorBoard; needs the extra `tensorboard`.
        keep_payloads: Write every accepted payload into the folder.
        keep_state: Keep checkpoints and clients' states in the folder after the end.
        **keys: Keys of the scenario to change, as for `--set`: a nested key with dots, or a dict for a whole section.

    Raises:
        FedpressError: The scenario is invalid (all problems are listed), or the data or the model do not fit it; raised
            before there is a run folder (`fedpress.simulations.runs.checks`).
        RunFailed: No reply could be used, or the model is not finite. The folder has the figures so far, with status
            `failed` and the reason, and a note says where.
        KeyboardInterrupt: The run was stopped. Its folder is whole, and a note says how to go on with it.
    """
    if resume is not None and (keys or out is not None):
        raise ValueError(f"resume={str(resume)!r} goes on as the run began; leave out `out` and the scenario's keys")
    if resume is not None:
        resume, chosen = Path(resume), start.unfinished(resume)[1]
    else:
        chosen = scenarios.load(scenario, list(_assignments(keys)))
    observers: list[Observer] = []
    if tensorboard:
        from fedpress.simulations.report import event_files

        observers.append(event_files.EventFiles())
    console = Console() if progress else Console(quiet=True, force_jupyter=False)
    with Display(console, chosen.rounds) as display, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # flwr-datasets' tqdm misses ipywidgets in a notebook
        try:
            launch.launch(
                chosen,
                display,
                *observers,
                out=out,
                resume=resume,
                engine=engine,
                ray_address=ray_address,
                keep_payloads=keep_payloads,
                keep_state=keep_state,
            )
        except KeyboardInterrupt as stop:
            if display.folder is not None:
                stop.add_note(f"to go on: fedpress.simulate(resume={str(display.folder.path)!r})")
            raise
        except RunFailed as failure:
            if display.folder is not None and display.folder.results.is_file():
                RunResult(display.folder.path).report()
                failure.add_note(f"its figures so far: fedpress.load_run({str(display.folder.path)!r})")
            raise
    assert display.folder is not None
    result = RunResult(display.folder.path)
    result.report()
    return result


def load_run(path: Path | str) -> RunResult:
    """Return the result of the run in a folder, finished or as far as it got.

    Raises:
        RunFolderError: There is no such folder, it is not a run's, or its results.json is torn.
    """
    return RunResult(path)


def _assignments(keys: dict[str, Any]) -> Iterator[str]:
    """Yield `key=value` for each key; JSON is YAML."""
    for key, value in keys.items():
        try:
            yield f"{key}={json.dumps(value, default=_plain, allow_nan=False)}"
        except (TypeError, ValueError) as error:
            raise TypeError(f"{key}: expected a number, a text, a list or a dict, got {value!r}: {error}") from None


def _plain(value: Any) -> Any:
    """Return a path, or a number or array of numpy, as a value of JSON."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not plain data")
