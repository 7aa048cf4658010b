"""The command line. Light to start: each command imports what it needs, so help works without torch and at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fedpress.compression.errors import FedpressError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it; 2 stands for input that cannot be used."""

DOCUMENTED: dict[str, Any] = {"hidden": True}
"""Arguments are explained in the text of their command: typer 0.20 on click 8.5 loses an argument's own help."""

PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}

main = typer.Typer(no_args_is_help=True, **PLAIN)
bench = typer.Typer(no_args_is_help=True, help="Measure this build on this machine.", **PLAIN)
main.add_typer(bench, name="bench")

JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON to FILE.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the scenario; may be given again."),
]


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
    makes small, quantised students of the global model for download.

    \b
    Start with:
      fedpress simulate              a whole run on real data, about two minutes
      fedpress init study            a scenario and a task of your own to change
    """


@main.command()
def simulate(
    scenario: Annotated[str, typer.Argument(**DOCUMENTED)] = "digits",
    overrides: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the run's files; must be new or empty. Default: under runs/."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Run a scenario in worker processes on this machine.

    SCENARIO is one that comes with fedpress (default: digits), a YAML file, or a
    folder with a scenario.yaml.

    Shows accuracy and bytes of each round and ends with a table. The run folder
    holds the scenario, results.json, ledger.csv, the model, the students' bundles
    and report.html. Ctrl-C stops a run; what there is so far stays readable.

    \b
    Scenarios that come with fedpress:
      digits             20 clients, 105,226 parameters, about two minutes
      fashion-mnist-100  100 clients, 582,026 parameters; needs the data (see its error)
    \b
    Examples:
      fedpress simulate
      fedpress simulate digits --set rounds=20 --set partition.alpha=0.1
      fedpress simulate fashion-mnist-100 --set task.data_dir=~/fashion --out runs/fashion
      fedpress simulate study/scenario.yaml --json figures.json
    \b
    Every key of a scenario is explained in the file that `fedpress init` writes.
    """
    with _clear_errors("simulation"):
        from rich.console import Console

        from fedpress.simulations import scenario as scenarios

        chosen = scenarios.load(scenario, overrides or ())
        _check_writable(json_file)
        from fedpress.simulations import progress, workload
        from fedpress.simulations.report import page
        from fedpress.simulations.run_folder import load
        from fedpress.simulations.tasks import registry

        # Absent data are found out before there is a run folder.
        registry.create(chosen.task.name, chosen.task.options, chosen.task.folder).data()
        console = Console()
        interrupted = False
        with progress.Display(console, chosen.rounds) as display:
            try:
                results = workload.simulate(chosen, out, display)
            except KeyboardInterrupt:
                interrupted = True
        folder = display.folder
        if folder is None or not folder.results.is_file():
            _leave("interrupted before the first round", INTERRUPTED)
        if interrupted:
            results = load(folder.path)
        page.write(folder.path)
        console.print()
        progress.print_run(console, results)
        _write_json(json_file, results.model_dump(mode="json"))
        if interrupted:
            _leave(
                f"interrupted after round {len(results.rounds)} of {chosen.rounds}; the figures so far are in"
                f" {folder.path}, and {folder.report} shows them",
                INTERRUPTED,
            )
        typer.echo(f"\nreport: {folder.report}")


@main.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", **DOCUMENTED)],
) -> None:
    """Write a run's report.html and print its path.

    RUN is a run folder. The report is one file that needs nothing else, readable in
    light and dark. `fedpress simulate` writes it at its end; this command makes it
    again, also for a run that was stopped half-way.

    \b
    Example:
      fedpress report runs/digits-20261123-101500
    """
    with _clear_errors("simulation"):
        from fedpress.simulations.report import page

        typer.echo(page.write(run))


@main.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="FILE|DIR", **DOCUMENTED)],
    json_file: JsonOption = None,
) -> None:
    """Check a payload, bundle or run and say what it holds.

    FILE is an encoded update or a student's download file; DIR is a run folder.
    A damaged file is an error that names the fault (exit code 2).

    \b
    Examples:
      fedpress inspect runs/digits-20261123-101500
      fedpress inspect student.bundle --json manifest.json
    """
    with _clear_errors("server"):
        from rich.console import Console

        from fedpress.simulations import inspection, progress

        _check_writable(json_file)
        found = inspection.inspect(path)
        console = Console()
        console.print(f"{path}: a {found.kind}", highlight=False, markup=False, soft_wrap=True)
        progress.print_facts(console, found.facts)
        if found.rows:
            console.print()
            progress.print_rows(console, found.columns, found.rows)
        _write_json(json_file, found.data)


@main.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", **DOCUMENTED)] = Path("."),
) -> None:
    """Write a scenario and a task of your own to start from.

    scenario.yaml has every key, each explained; task.py is a model with its data,
    with the places to change marked. They run as they are. DIR is made if need be;
    the default is this folder. Nothing is overwritten.

    \b
    Example:
      fedpress init study
      fedpress simulate study
    """
    with _clear_errors("simulation"):
        from fedpress.simulations import init as skeleton

        for path in skeleton.write(folder):
            typer.echo(f"wrote {path}")
        typer.echo(f"run it: fedpress simulate {folder}")


@contextmanager
def _clear_errors(extra: str) -> Iterator[None]:
    """Turn what a user can mend into one message and exit code 2: bad input, or an extra that is not installed."""
    try:
        yield
    except FedpressError as error:
        _leave(f"error: {error}", 2)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA_MODULES:
            raise
        _leave(f"error: this command needs {error.name}, which is not installed: pip install 'fedpress[{extra}]'", 2)


EXTRA_MODULES = frozenset(
    "flwr flwr_datasets datasets torch torch_pruning safetensors sklearn pandas matplotlib jinja2 markupsafe".split()
)
"""What the extras bring, by import name."""


def _leave(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


def _check_writable(path: Path | None) -> None:
    """Find out before a long run, not after it."""
    if path is not None and not path.parent.is_dir():
        _leave(f"error: --json {path}: there is no folder {path.parent}", 2)


def _write_json(path: Path | None, data: Any) -> None:
    if path is not None:
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"JSON: {path}")


if __name__ == "__main__":
    sys.exit(main())
