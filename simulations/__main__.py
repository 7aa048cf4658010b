"""The command line. Light to start: each command imports what it needs, so help works without torch and at once."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpress.simulations.cli import common, hub, service
from fedpress.simulations.cli.bench import bench

main = typer.Typer(no_args_is_help=True, **common.PLAIN)
main.add_typer(bench, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedpress {version('fedpress')}")
        raise typer.Exit


@main.callback(epilog="`fedpress COMMAND --help` explains a command and gives examples.")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Federated learning on Flower for links that are slow, metered or lossy.

    Clients send the largest entries of their updates, entropy-coded; the server
    makes small, quantized students of the global model for download.

    \b
    Start with:
      fedpress simulate              a whole run on real data, about two minutes
      fedpress init study            a scenario and a task of your own to change
    """


@main.command()
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
        Path | None, typer.Option(metavar="RUN", help="Go on with the run in folder RUN, killed or interrupted.")
    ] = None,
    keep_state: Annotated[
        bool, typer.Option("--keep-state", help="Keep RUN/state after the end: checkpoints, clients' states.")
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
    json_file: common.JsonOption = None,
) -> None:
    """Run a scenario in worker processes on this machine.

    SCENARIO is one that comes with fedpress (default: digits), a YAML file, or a
    folder with a scenario.yaml.

    Shows accuracy and bytes of each round and ends with a table. The run folder
    holds the scenario, results.json, ledger.csv, the model, the students' bundles
    and report.html. Ctrl-C or SIGTERM stops a run; what there is stays readable.

    A run that was stopped, killed or cut off by a power cut goes on with --resume,
    and ends with the same model as if nothing had been.

    With --engine flower, clients run on Flower's own simulation engine: slower, and
    with --ray-address on all machines of a Ray cluster. The result is the same, to the
    bit; scenarios with a `network` or `faults` need the inline engine. It needs the
    extra fedpress[cluster]; docs/concepts/engines.md says what the machines must share.

    With --tensorboard, `tensorboard --logdir runs` shows runs side by side while they
    go on: accuracy, loss, bytes and replies by round, and accuracy over bytes (there
    the step is the bytes so far). It needs the extra fedpress[tensorboard].

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
      fedpress simulate fashion-mnist-100 --engine flower --ray-address 10.0.0.1:6379
    \b
    Every key of a scenario is explained in the file that `fedpress init` writes.
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
        from fedpress.compression.models.task import usable
        from fedpress.simulations.cli import progress
        from fedpress.simulations.report import run_page
        from fedpress.simulations.results import start
        from fedpress.simulations.results.run_folder import load
        from fedpress.simulations.runs import plan_students, runner, workload
        from fedpress.simulations.runs.observer import Observer

        followers: list[Observer] = []
        if tensorboard:
            with common.clear_errors("tensorboard"):
                from fedpress.simulations.report import event_files
            followers.append(event_files.EventFiles())
        if chosen is None:
            assert resume is not None
            _, chosen = start.unfinished(resume)
        make_grid: runner.MakeGrid = runner.inline
        if engine == "flower":
            with common.clear_errors("cluster"):
                from fedpress.simulations.engines import flower
            flower.check(chosen, ray_address)
            make_grid = runner.flower(ray_address)
        work = workload.Workload(chosen)
        work.examples(0)  # absent data, or too few, are found out before there is a run folder
        work.network  # noqa: B018 - and so is a trace that cannot be used
        usable(chosen.training.device)
        plan_students.signing_key(chosen.students)
        console = Console()
        interrupted = False
        with progress.Display(console, chosen.rounds) as display:
            try:
                options: dict[str, Any] = {
                    "keep_state": keep_state,
                    "keep_payloads": keep_payloads,
                    "make_grid": make_grid,
                }
                if resume is not None:
                    results = runner.resume(resume, display, *followers, **options)
                else:
                    results = runner.simulate(chosen, out, display, *followers, **options)
            except KeyboardInterrupt:
                interrupted = True
        folder = display.folder
        if folder is None or not folder.results.is_file():
            common.leave("interrupted before the first round", common.INTERRUPTED)
        if interrupted:
            results = load(folder.path)
        run_page.write(folder.path)
        console.print()
        progress.print_run(console, results)
        common.write_json(json_file, results.model_dump(mode="json"))
        if interrupted:
            common.leave(
                f"interrupted after round {len(results.rounds)} of {chosen.rounds}; the figures so far are in"
                f" {folder.path}, and {folder.report} shows them. To go on: fedpress simulate --resume {folder.path}",
                common.INTERRUPTED,
            )
        typer.echo(f"\nreport: {folder.report}")


@main.command()
def students(
    run: Annotated[Path, typer.Argument(metavar="RUN", **common.DOCUMENTED)],
    overrides: common.SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the new figures; must be new or empty. Default: under runs/."),
    ] = None,
    json_file: common.JsonOption = None,
) -> None:
    """Make the students of a finished run anew, with other settings.

    RUN is a run folder; its global model is the teacher, and no round is run again.
    --set changes keys under `students`. The new folder is a run folder, too: with
    the same model and rounds, other students, and a report of them.

    \b
    Examples:
      fedpress students runs/fashion --set students.quantize.bits=4
      fedpress students runs/fashion --set 'students.tiers=[{name: watch, bundle_bytes: 9000}]'
    """
    with common.clear_errors("simulation", json_file):
        from rich.console import Console

        from fedpress.simulations.cli import progress
        from fedpress.simulations.report import run_page
        from fedpress.simulations.runs import remake_students

        console = Console()
        with progress.Display(console, 0) as display:
            try:
                folder = remake_students.remake(run, overrides or (), out, display.on_student, display.on_search)
            except KeyboardInterrupt:
                common.leave("interrupted; no new folder was left", common.INTERRUPTED)
        run_page.write(folder.path)
        results = folder.load_results()
        console.print()
        progress.print_run(console, results)
        common.write_json(json_file, results.model_dump(mode="json"))
        typer.echo(f"\nreport: {folder.report}")


@main.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]", **common.DOCUMENTED)],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the page goes. Default: RUN/report.html, of several comparison.html."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write every figure as an SVG and a PNG file into DIR, for print."),
    ] = None,
    tensorboard: common.TensorboardOption = False,
) -> None:
    """Write a run's report, or one page that compares several runs.

    RUN is a run folder. A page is one file that needs nothing else, readable in light
    and dark. `fedpress simulate` writes report.html at its end; this command makes it
    again, also for a run that was stopped half-way.

    Of several runs: their curves together, a table, and the keys in which their
    scenarios differ. Runs of one scenario with different seeds become one curve with a
    band, and one row. A run that is not finished is shown as far as it got.

    --tensorboard writes what `fedpress simulate --tensorboard` would have written.

    \b
    Examples:
      fedpress report runs/digits-20261123-101500
      fedpress report runs/dense runs/sparse --out study.html --figures paper/figures
      fedpress report runs/sparse-*
    """
    with common.clear_errors("simulation"):
        common.check_target("--out", out)
        if figures is not None and figures.exists() and not figures.is_dir():
            common.leave(f"error: --figures {figures}: expected a folder, and this is a file", 2)
        from fedpress.simulations.report import comparison_page, run_page

        written = []
        if len(runs) == 1:
            typer.echo(run_page.write(runs[0], out))
            written = run_page.write_figures(runs[0], figures) if figures else []
        else:
            typer.echo(comparison_page.write(runs, out or Path("comparison.html")))
            written = comparison_page.write_figures(runs, figures) if figures else []
        if tensorboard:
            with common.clear_errors("tensorboard"):
                from fedpress.simulations.report import event_files
            written += [event_files.write(run) for run in runs]
        for path in written:
            typer.echo(path)


@main.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="FILE|DIR", **common.DOCUMENTED)],
    key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Ed25519 public key of who must have signed the bundle.")
    ] = None,
    json_file: common.JsonOption = None,
) -> None:
    """Check a payload, bundle or run and say what it holds.

    FILE is an encoded update or a student's download file; DIR is a run folder.
    A damaged file is an error that names the fault (exit code 2), and so is a
    bundle that was not signed with --key.

    \b
    Examples:
      fedpress inspect runs/digits-20261123-101500
      fedpress inspect student.fpb --key signing.pub.pem --json manifest.json
    """
    with common.clear_errors("server", json_file):
        from fedpress.simulations.cli import inspection

        found = inspection.inspect(path, key)
        typer.echo(f"{path}: a {found.kind}")
        common.show_facts(found.facts)
        if found.rows:
            typer.echo()
            common.show_rows(found.columns, found.rows)
        common.write_json(json_file, found.data)


@main.command()
def probe(
    scenario: Annotated[str | None, typer.Argument(**common.DOCUMENTED)] = None,
    overrides: common.SetOption = None,
    latency: Annotated[
        float | None, typer.Option(metavar="MS", help="An answer may take this many milliseconds here.")
    ] = None,
    memory: Annotated[
        int | None, typer.Option(metavar="BYTES", help="Memory that a model may take here; default: what is free.")
    ] = None,
    download: Annotated[int | None, typer.Option(metavar="BYTES", help="The largest download that is welcome.")] = None,
    threads: Annotated[int, typer.Option(help="Threads to measure on (1).", **common.COUNT)] = 1,
    json_file: common.JsonOption = None,
) -> None:
    """Measure this device in a few seconds, and name its tier.

    Times reference models, a matrix product and a convolution, and fits a formula by
    which a server can tell how long a model takes here that was never seen here.

    With SCENARIO, its task's model is timed too, and so are the students of its tiers:
    this device is of the largest tier that fits. The file that --json writes says so
    to a node (node configuration: probe="FILE"), and to a scenario as the `device`
    of a tier with a budget of latency_ms.

    \b
    Examples:
      fedpress probe
      fedpress probe fashion-mnist-100 --latency 0.2 --json phone.json
    """
    with common.clear_errors("simulation", json_file):
        from fedpress.simulations.runs import probe_tiers
        from fedpress.simulations.scenario import scenario as scenarios

        chosen = scenarios.load(scenario, overrides or ()) if scenario else None
        found, tiers = probe_tiers.run(chosen, probe_tiers.Limits(latency, memory, download), threads)
        common.show_facts(probe_tiers.facts(found))
        typer.echo()
        common.show_rows(probe_tiers.MODEL_COLUMNS, probe_tiers.model_rows(found))
        if tiers:
            typer.echo()
            common.show_rows(probe_tiers.TIER_COLUMNS, probe_tiers.tier_rows(tiers))
        common.write_json(json_file, found.to_json())
        if chosen and not found.tier:
            raise probe_tiers.nothing_fits(tiers)
        if found.tier:
            typer.echo(f"\ntier: {found.tier}")


@main.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", **common.DOCUMENTED)] = Path("."),
    every: Annotated[bool, typer.Option("--all", help="Write the keys, too, that few runs need.")] = False,
) -> None:
    """Write a scenario and a task of your own to start from.

    scenario.yaml has the keys that most runs need, each explained; task.py is a model
    with its data, with the places to change marked. They run as they are. DIR is made if need be;
    the default is this folder. Nothing is overwritten.

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


main.command()(service.server)
main.command()(service.client)
main.add_typer(service.keys, name="keys")
hub.add_to(main)

if __name__ == "__main__":
    sys.exit(main())
