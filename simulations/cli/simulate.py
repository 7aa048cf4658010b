"""`fedpress simulate`, `students` and `init`: runs of scenarios, students of a finished run, files to start from."""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpress.simulations.cli import common

if TYPE_CHECKING:
    from fedpress.simulations.runs.forecast import Forecast


def simulate(
    scenario: Annotated[str | None, typer.Argument(**common.DOCUMENTED)] = None,
    overrides: common.SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the run's files; must be new or empty. Default: under runs/."),
    ] = None,
    keep_payloads: Annotated[
        bool, typer.Option("--keep-payloads", help="Keep every accepted payload as a file of the run folder.")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue the interrupted or killed run in folder RUN.")
    ] = None,
    keep_state: Annotated[
        bool, typer.Option("--keep-state", help="Keep RUN/state (checkpoints, clients' states) after the end.")
    ] = False,
    engine: Annotated[
        str, typer.Option(metavar="NAME", show_default=False, help="inline (default), or flower: Flower's own, on Ray.")
    ] = "inline",
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="With --engine flower: the Ray cluster to run on; auto: this machine's."
        ),
    ] = None,
    tensorboard: common.TensorboardOption = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only check, in seconds, and print what would be trained, sent, held and stored."),
    ] = False,
    json_file: common.JsonOption = None,
) -> None:
    """Run a scenario in worker processes on this machine.

    SCENARIO is one that comes with fedpress (default: digits), a YAML file, or a
    folder with a scenario.yaml.

    Prints accuracy and bytes of each round, and a table at the end. The run folder
    holds the scenario, results.json, ledger.csv, the model, the students' bundles
    and report.html. Ctrl-C or SIGTERM stops a run and leaves a readable folder.

    All that can be known before the first round is checked before it: data, labels, a
    step of training, students, room on the disk. What is wrong ends the command with
    exit code 2, before there is a run folder. --check does no more than that.

    A run has failed (exit code 1, status `failed` with the reason) where three rounds in
    a row, or all, bring no usable reply, or where its model or loss is not finite.

    --resume continues a run that was stopped or killed, also by a power failure. It
    ends with the same model as an uninterrupted run.

    With --engine flower, clients run on Flower's own simulation engine: slower, and
    with --ray-address on all machines of a Ray cluster. The result is the same, to the
    bit. Scenarios with `network` or `faults` need the inline engine. Needs the extra
    cluster; docs/concepts/engines.md says what the machines must share.

    With --tensorboard, `tensorboard --logdir runs` shows runs side by side while they
    are running: accuracy, loss, bytes and replies by round, and accuracy over bytes
    (with the bytes so far as the step). Needs the extra tensorboard.

    \b
    Scenarios that come with fedpress:
      digits             20 clients, 105,226 parameters, about two minutes
      fashion-mnist-100  100 clients, 582,026 parameters; needs the data (see its error)
      text-books         66 clients, a book each, 311,121 parameters; needs the data, too
    \b
    Examples:
      fedpress simulate
      fedpress simulate digits --set rounds=20 --set partition.alpha=0.1
      fedpress simulate digits --set network=lte
      fedpress simulate fashion-mnist-100 --set task.data_dir=~/fashion --out runs/fashion
      fedpress simulate study/scenario.yaml --json figures.json
      fedpress simulate --resume runs/fashion
      fedpress simulate study --check
      fedpress simulate fashion-mnist-100 --engine flower --ray-address 10.0.0.1:6379
    \b
    The file that `fedpress init` writes explains the keys that most scenarios need;
    docs/reference/scenario.md has all of them.
    """
    with common.clear_errors("simulation", json_file):
        from rich.console import Console

        from fedpress.simulations.scenario import scenario as scenarios

        if resume is not None and (scenario or overrides or out):
            common.leave(f"error: --resume {resume} goes on as the run began; leave out SCENARIO, --set and --out", 2)
        if engine not in ("inline", "flower"):
            common.leave(f"error: --engine {engine}: expected inline or flower", 2)
        if ray_address and engine == "inline":
            common.leave(
                f"error: --ray-address {ray_address}: only Flower's engine runs on a cluster; add --engine flower", 2
            )
        chosen = scenarios.load(scenario or "digits", overrides or ()) if resume is None else None
        from fedpress.server.rounds.outcome import RunFailed
        from fedpress.simulations.cli import progress
        from fedpress.simulations.report import run_page, tables
        from fedpress.simulations.results import start
        from fedpress.simulations.results.run_folder import load
        from fedpress.simulations.runs import launch
        from fedpress.simulations.runs.observer import Observer

        if chosen is None:
            assert resume is not None
            _, chosen = start.unfinished(resume)
        if check:
            _show_check(launch.only_check(chosen, out=out, resume=resume, keep_payloads=keep_payloads), json_file)
            return
        followers: list[Observer] = []
        if tensorboard:
            with common.clear_errors("tensorboard"):
                from fedpress.simulations.report import event_files
            followers.append(event_files.EventFiles())
        if engine == "flower":
            with common.clear_errors("cluster"):
                importlib.import_module("fedpress.simulations.engines.flower")  # so that a missing extra is named
        interrupted, failure = False, None
        with progress.Display(Console(), chosen.rounds) as display:
            try:
                results = launch.launch(
                    chosen,
                    display,
                    *followers,
                    out=out,
                    resume=resume,
                    engine="flower" if engine == "flower" else "inline",
                    ray_address=ray_address,
                    keep_state=keep_state,
                    keep_payloads=keep_payloads,
                )
            except KeyboardInterrupt:
                interrupted = True
            except RunFailed as error:
                failure = error
        folder = display.folder
        if folder is None or not folder.results.is_file():
            common.leave("interrupted before the first round", common.INTERRUPTED)
        if interrupted or failure is not None:
            results = load(folder.path)
        with suppress(*((OSError,) if failure is not None else ())):  # of a full disk, which is the failure then
            run_page.write(folder.path)
        common.show_lines(["", *tables.run_lines(results)])
        common.write_json(json_file, results.model_dump(mode="json"))
        if interrupted:
            common.leave(
                f"interrupted after round {len(results.rounds)} of {chosen.rounds}; the figures so far are in"
                f" {folder.path}, and {folder.report} shows them. To continue: fedpress simulate --resume"
                f" {folder.path}",
                common.INTERRUPTED,
            )
        if failure is not None:
            common.leave(
                f"error: the run has failed: {failure}\nThe figures so far are in {folder.path}, {folder.report} shows"
                f" them, {folder.log} is its log. To try again from there: fedpress simulate --resume {folder.path}",
                failure.exit_code,
            )
        typer.echo(f"\nreport: {folder.report}")


def _show_check(predicted: Forecast, json_file: Path | None) -> None:
    """Print the forecast of a run, and write it as JSON."""
    from fedpress.simulations.runs import forecast

    common.show_rows(forecast.MODEL_COLUMNS, forecast.model_rows(predicted))
    typer.echo()
    common.show_rows(forecast.BYTES_COLUMNS, forecast.bytes_rows(predicted))
    if predicted.students:
        typer.echo()
        common.show_rows(forecast.STUDENT_COLUMNS, forecast.student_rows(predicted))
    typer.echo()
    common.show_facts(forecast.facts(predicted))
    for note in predicted.notes:
        typer.echo(f"note: {note}")
    typer.echo("nothing forbids this run")
    common.write_json(json_file, predicted.model_dump(mode="json"))


def students(
    run: Annotated[Path, typer.Argument(metavar="RUN", **common.DOCUMENTED)],
    overrides: common.SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the new run; must be new or empty. Default: under runs/."),
    ] = None,
    json_file: common.JsonOption = None,
) -> None:
    """Make new students of a finished run, with other settings.

    RUN is a run folder; its global model is the teacher, and no round is run again.
    --set changes keys under `students`. The new folder is a run folder, too: with
    the same model and rounds, the new students, and their report.

    \b
    Examples:
      fedpress students runs/fashion --set students.quantize.bits=4
      fedpress students runs/fashion --set 'students.tiers=[{name: watch, bundle_bytes: 9000}]'
    """
    with common.clear_errors("simulation", json_file):
        from rich.console import Console

        from fedpress.simulations.cli import progress
        from fedpress.simulations.report import run_page, tables
        from fedpress.simulations.runs import remake_students

        with progress.Display(Console(), 0) as display:
            try:
                folder = remake_students.remake(run, overrides or (), out, display.on_student, display.on_search)
            except KeyboardInterrupt:
                common.leave("interrupted; no new folder was left", common.INTERRUPTED)
        run_page.write(folder.path)
        results = folder.load_results()
        common.show_lines(["", *tables.run_lines(results)])
        common.write_json(json_file, results.model_dump(mode="json"))
        typer.echo(f"\nreport: {folder.report}")


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", **common.DOCUMENTED)] = Path("."),
    every: Annotated[bool, typer.Option("--all", help="Write the keys, too, that few runs need.")] = False,
) -> None:
    """Write a scenario and a task of your own to start from.

    scenario.yaml has the keys that most scenarios need, each explained (all others:
    docs/reference/scenario.md); task.py is a model with its data, with the places to
    change marked. They run as they are. DIR is created if needed; the default is the
    current folder. Nothing is overwritten.

    \b
    Example:
      fedpress init study
      fedpress simulate study
    """
    with common.clear_errors("simulation"):
        from fedpress.simulations.scenario import template

        for path in template.write(folder, advanced=every):
            typer.echo(f"wrote {path}")
        typer.echo(f"run it: fedpress simulate {folder}")
