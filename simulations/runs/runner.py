"""Runner of whole scenarios: starts the engine, carries out the server's plan, stops the engine."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedpress.compression.errors import FedpressError
from fedpress.server import app as server
from fedpress.server.rounds.outcome import RunFailed
from fedpress.simulations.conditions import faulty_client
from fedpress.simulations.engines import inline as inline_engine
from fedpress.simulations.engines import worker_process
from fedpress.simulations.results import start
from fedpress.simulations.results.records import Results
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import job as jobs
from fedpress.simulations.runs import plan
from fedpress.simulations.runs.job import Job
from fedpress.simulations.runs.observer import Observer
from fedpress.simulations.runs.recorder import Recorder
from fedpress.simulations.scenario.scenario import Scenario

if TYPE_CHECKING:
    from fedpress.simulations.engines.flower import FlowerGrid  # needs Ray

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Error numbers of a disk that takes no more."""

MakeGrid = Callable[[Job, RunFolder, Mapping[str, str]], "inline_engine.InlineGrid | FlowerGrid"]
"""Starts an engine for a run, given the run configuration of the apps."""


def inline(job: Job, folder: RunFolder, config: Mapping[str, str]) -> inline_engine.InlineGrid:
    """Start the inline engine.

    Args:
        job: Work of the scenario.
        folder: Of the run.
        config: Run configuration of the apps.
    """
    workload = job.whole
    scenario = workload.scenario
    return inline_engine.InlineGrid(
        faulty_client.REFERENCE if workload.faults else "fedpress.client.app:app",
        clients=scenario.clients,
        workers=scenario.worker_count,
        run_config=config,
        network=workload.network,
        injected=workload.faults,
        examples=workload.examples_a_round,
        log_file=folder.log,
        states=folder.client_states,
    )


def flower(address: str | None = None) -> MakeGrid:
    """Return a function that starts Flower's simulation engine on the Ray cluster at `address`; None: this machine."""
    from fedpress.simulations.engines import flower as flower_engine

    return lambda job, folder, config: flower_engine.of_run(job.whole.scenario, folder, config, address)


def simulate(
    scenario: Scenario,
    out: Path | str | None = None,
    *observers: Observer,
    keep_state: bool = False,
    keep_payloads: bool = False,
    adjust: Callable[[server.Plan], None] = lambda _: None,
    make_grid: MakeGrid = inline,
    job: Job | None = None,
) -> Results:
    """Run a scenario and return its results, which the run folder holds too.

    Args:
        scenario: The scenario.
        out: Path of the run folder, new or empty; None: a new one under `runs/`.
        *observers: Follow the run; called in this order.
        keep_state: Keep checkpoints and clients' states in the folder after the end.
        keep_payloads: Write every accepted payload into the folder.
        adjust: Changes the server's plan before the run, beyond the keys of a scenario.
        make_grid: Starts the engine; the results do not depend on it.
        job: Work of the scenario without a folder, with what the checks have loaded; None: it is made.

    Raises:
        RunFolderError: `out` is not empty, or cannot be made.
        RunFailed: No reply could be used, or the model is not finite; as any error, in the folder as the reason.
        KeyboardInterrupt: Passed on once the folder is whole.
    """
    folder = start.new_folder(scenario, out)
    return _run(folder, scenario, observers, keep_state, keep_payloads, adjust, make_grid, job)


def resume(
    path: Path | str,
    *observers: Observer,
    keep_state: bool = False,
    keep_payloads: bool = False,
    make_grid: MakeGrid = inline,
) -> Results:
    """Go on with a run that was killed or interrupted; its end is that of the undisturbed run, to the bit.

    Args:
        path: Path of the run folder.
        *observers: Follow the run from here on.
        keep_state: Keep checkpoints and clients' states in the folder after the end.
        keep_payloads: Write every payload accepted from here on into the folder.
        make_grid: Starts the engine, which may be another than before.

    Raises:
        RunFolderError: `path` is not a run's folder, its run is finished, or its scenario has been changed since.
        CheckpointError: Its checkpoints cannot be used.
        EngineError: The run is still going on in another process.
        KeyboardInterrupt: Passed on once the folder is whole.
    """
    return _run(*start.unfinished(path), observers, keep_state, keep_payloads, make_grid=make_grid)


def _run(
    folder: RunFolder,
    scenario: Scenario,
    observers: Sequence[Observer],
    keep_state: bool,
    keep_payloads: bool,
    adjust: Callable[[server.Plan], None] = lambda _: None,
    make_grid: MakeGrid = inline,
    job: Job | None = None,
) -> Results:
    for observer in observers:
        observer.on_start(scenario, folder)
    with worker_process.log_to_file(folder.log) as logger:
        config = {"workload": jobs.REFERENCE, "scenario": scenario.to_json(), "out": str(folder.path.resolve())}
        checked, job = job is not None, (job or Job(scenario)).at(folder.path)
        planned = plan.plan(job, folder, observers, keep_payloads=keep_payloads)
        planned.checked = checked
        recorder = planned.record
        assert isinstance(recorder, Recorder)
        recorder.keep_state = keep_state
        adjust(planned)
        try:
            with make_grid(job, folder, config) as grid:
                folder.remove_leftovers()  # the engine holds the lock: no other run writes here
                recorder.states, recorder.workers = grid.states_digest, lambda: grid.seconds
                inline_engine.run(server.server_app(lambda _: planned), grid, config)
        except BaseException as error:
            logger.exception("the run stopped: %s", type(error).__name__)
            failed = isinstance(error, Exception)
            if failed or recorder.rounds or not folder.results.exists():
                with suppress(OSError):  # of a full disk, which is the error then: what was written before is whole
                    recorder.write("failed" if failed else "interrupted", _reason(error) if failed else "")
            if isinstance(error, OSError):
                raise RunFailed(_reason(error)) from error
            raise
        finally:
            if folder.results.is_file():
                results = folder.load_results()
                for observer in observers:
                    observer.on_end(results)
        return folder.load_results()


def _reason(error: BaseException) -> str:
    """Return the text of an error, with its class where that is not fedpress's own."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return f"the run folder cannot be written any more: {error}; what was written before is whole: make room"
    return str(error) if isinstance(error, FedpressError) else f"{type(error).__name__}: {error}"
