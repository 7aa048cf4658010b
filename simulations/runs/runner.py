"""A whole run of a scenario: the server's plan, the engine started and stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpress.server import app as server
from fedpress.server.fusion.client_ensemble import ClientModels
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.simulations.engines import inline as inline_engine
from fedpress.simulations.engines import worker_process
from fedpress.simulations.results import start
from fedpress.simulations.results.records import Results
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import plan_masks, plan_strategy, plan_students, recorder
from fedpress.simulations.runs.workload import REFERENCE, Workload
from fedpress.simulations.scenario.scenario import Scenario

if TYPE_CHECKING:
    from fedpress.simulations.engines.flower import FlowerGrid  # needs Ray

MakeGrid = Callable[[Workload, RunFolder, Mapping[str, str]], "inline_engine.InlineGrid | FlowerGrid"]
"""Starts an engine for a run, given the configuration that the apps get."""


def inline(workload: Workload, folder: RunFolder, config: Mapping[str, str]) -> inline_engine.InlineGrid:
    """Start the inline engine."""
    scenario = workload.scenario
    return inline_engine.InlineGrid(
        "fedpress.client.app:app",
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
    """Return what starts Flower's simulation engine, on this machine or on the Ray cluster at `address`."""
    from fedpress.simulations.engines import flower as flower_engine

    return lambda workload, folder, config: flower_engine.of_run(workload.scenario, folder, config, address)


def plan(
    workload: Workload, folder: RunFolder, observer: recorder.Observer | None = None, *, keep_payloads: bool = False
) -> server.Plan:
    """Return the server's plan, which keeps the run folder up to date."""
    scenario = workload.scenario
    sampling = scenario.sampling
    if not folder.partition.exists():
        workload.save_parts(folder)
    options: dict[str, Any] = {
        "fraction_evaluate": 0.0,
        "optimizer": plan_strategy.optimizer(workload),
        "averaging": scenario.server.ema_decay,
        "prediction": workload.prediction,
        "schedule": sampling.buffer,
        "min_replies": sampling.min_replies,
        "deadline": sampling.deadline,
        "seed": scenario.seed,
    }
    whole = {
        **options,
        **plan_strategy.shares(scenario, None),
        "downlink": plan_strategy.downlink(workload),
        "layout": workload.layout,
        "federation": workload.federation,
        "on_accepted": folder.save_payload if keep_payloads else None,
        "checkpoints": folder.checkpoints,
    }
    clients = ClientModels() if scenario.students.teachers == "clients" and scenario.students.tiers else None
    if clients is not None or scenario.fusion is not None:
        whole |= {"clients": clients, "fusion": plan_students.fusion(workload)}
    if scenario.sparsity is not None:
        whole["masks"] = plan_masks.schedule(workload, folder)
    strategy = plan_strategy.strategy(workload, folder, options, whole) if workload.tiers else SparseFed(**whole)
    writer = recorder.Writer(workload, folder, strategy, observer)
    on_search = observer.on_search if observer else lambda tier, step: None
    strategy.companions["results"] = writer
    return server.Plan(
        task=workload.task,
        strategy=strategy,
        model=workload.fresh_model(),
        rounds=scenario.rounds,
        watcher=writer,
        evaluate_on=getattr(workload.task.data(), scenario.evaluation.split),
        evaluate_every=scenario.evaluation.every,
        publisher=plan_students.publisher(workload, folder, on_search, clients),
        publish_every=scenario.students.every,
        downloads_per_tier=scenario.students.downloads_per_tier,
        device=scenario.training.device,
    )


def simulate(
    scenario: Scenario,
    out: Path | str | None = None,
    observer: recorder.Observer | None = None,
    *,
    keep_state: bool = False,
    keep_payloads: bool = False,
    adjust: Callable[[server.Plan], None] = lambda _: None,
    make_grid: MakeGrid = inline,
) -> Results:
    """Run a scenario and return its results, which the run folder holds too.

    Args:
        scenario: what to run.
        out: the run folder, new or empty; None makes a new one under `runs/`.
        observer: is told what happens.
        keep_payloads: whether the folder gets every accepted payload as a file.
        keep_state: whether checkpoints and clients' states stay in the folder after the end.
        adjust: is given the server's plan before it is carried out, to change what a scenario does not say.
        make_grid: starts the engine, which the results do not depend on.

    Raises:
        RunFolderError: `out` is not empty, or cannot be made.
        KeyboardInterrupt: passed on once the folder is whole.
    """
    return _run(start.new_folder(scenario, out), scenario, observer, keep_state, keep_payloads, adjust, make_grid)


def resume(
    path: Path | str,
    observer: recorder.Observer | None = None,
    *,
    keep_state: bool = False,
    keep_payloads: bool = False,
    make_grid: MakeGrid = inline,
) -> Results:
    """Go on with a run that was killed or interrupted; its end is that of the undisturbed run, to the bit.

    Args:
        path: the run folder.
        observer: is told what happens from here on.
        keep_state: whether checkpoints and clients' states stay in the folder after the end.
        keep_payloads: whether the folder gets every payload accepted from here on as a file.
        make_grid: starts the engine, which need not be the one that the run began on.

    Raises:
        RunFolderError: it is no such folder, its run is finished, or its scenario has been changed since.
        CheckpointError: its checkpoints cannot be used.
        EngineError: the run is still going on in another process.
        KeyboardInterrupt: passed on once the folder is whole.
    """
    return _run(*start.unfinished(path), observer, keep_state, keep_payloads, make_grid=make_grid)


def _run(
    folder: RunFolder,
    scenario: Scenario,
    observer: recorder.Observer | None,
    keep_state: bool,
    keep_payloads: bool,
    adjust: Callable[[server.Plan], None] = lambda _: None,
    make_grid: MakeGrid = inline,
) -> Results:
    if observer:
        observer.on_start(scenario, folder)
    with worker_process.log_to_file(folder.log) as logger:
        config = {"workload": REFERENCE, "scenario": scenario.to_json(), "out": str(folder.path.resolve())}
        workload = Workload(scenario, folder.path)
        planned = plan(workload, folder, observer, keep_payloads=keep_payloads)
        writer = planned.watcher
        assert isinstance(writer, recorder.Writer)
        writer.keep_state = keep_state
        adjust(planned)
        try:
            with make_grid(workload, folder, config) as grid:
                folder.remove_leftovers()  # the engine's lock is held: no other run is at work here
                writer.states, writer.workers = grid.states_digest, lambda: grid.phases
                inline_engine.run(server.server_app(lambda _: planned), grid, config)
        except BaseException as error:
            logger.exception("the run stopped: %s", type(error).__name__)
            if writer.rounds or not folder.results.exists():
                writer.write("interrupted")
            raise
        finally:
            if observer:
                observer.on_end(folder.load_results())
        return folder.load_results()
