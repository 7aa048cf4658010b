"""The command line. Light to start: each command imports what it needs, so help works without torch and at once."""

from __future__ import annotations

import json
import math
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


def _positive(count: int | None) -> int | None:
    if count is not None and count < 1:
        raise typer.BadParameter(f"got {count}, expected at least 1")
    return count


COUNT: dict[str, Any] = {"metavar": "N", "show_default": False, "callback": _positive}


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
    scenario: Annotated[str | None, typer.Argument(**DOCUMENTED)] = None,
    overrides: SetOption = None,
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
    json_file: JsonOption = None,
) -> None:
    """Run a scenario in worker processes on this machine.

    SCENARIO is one that comes with fedpress (default: digits), a YAML file, or a
    folder with a scenario.yaml.

    Shows accuracy and bytes of each round and ends with a table. The run folder
    holds the scenario, results.json, ledger.csv, the model, the students' bundles
    and report.html. Ctrl-C stops a run; what there is so far stays readable.

    A run that was stopped, killed or cut off by a power cut goes on with --resume,
    and ends with the same model as if nothing had been.

    \b
    Scenarios that come with fedpress:
      digits             20 clients, 105,226 parameters, about two minutes
      fashion-mnist-100  100 clients, 582,026 parameters; needs the data (see its error)
      text-books         66 clients, a book each, 311,121 parameters; needs the data, too
    \b
    Examples:
      fedpress simulate
      fedpress simulate digits --set rounds=20 --set partition.alpha=0.1
      fedpress simulate fashion-mnist-100 --set task.data_dir=~/fashion --out runs/fashion
      fedpress simulate study/scenario.yaml --json figures.json
      fedpress simulate --resume runs/fashion
    \b
    Every key of a scenario is explained in the file that `fedpress init` writes.
    """
    with _clear_errors("simulation"):
        from rich.console import Console

        from fedpress.simulations import scenario as scenarios

        if resume is not None and (scenario or overrides or out):
            _leave(f"error: --resume {resume} goes on as the run began; leave out SCENARIO, --set and --out", 2)
        chosen = scenarios.load(scenario or "digits", overrides or ()) if resume is None else None
        _check_writable(json_file)
        from fedpress.simulations import progress, runner, workload
        from fedpress.simulations.report import page
        from fedpress.simulations.run_folder import load

        if chosen is None:
            assert resume is not None
            _, chosen = runner.unfinished(resume)
        workload.Workload(chosen).examples(0)  # absent data, or too few, are found out before there is a run folder
        console = Console()
        interrupted = False
        with progress.Display(console, chosen.rounds) as display:
            try:
                if resume is not None:
                    results = runner.resume(resume, display, keep_state=keep_state, keep_payloads=keep_payloads)
                else:
                    results = runner.simulate(chosen, out, display, keep_state=keep_state, keep_payloads=keep_payloads)
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
                f" {folder.path}, and {folder.report} shows them. To go on: fedpress simulate --resume {folder.path}",
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


@bench.command("engine")
def bench_engine(
    messages: Annotated[int, typer.Option(help="Messages in each repetition (2000).", **COUNT)] = 2000,
    workers: Annotated[int, typer.Option(help="Worker processes (2).", **COUNT)] = 2,
    repetitions: Annotated[int, typer.Option(help="Repetitions; the median counts (5).", **COUNT)] = 5,
    json_file: JsonOption = None,
) -> None:
    """Measure what the engine costs beside the clients' work.

    Prints the time from the start to the first reply of every worker, and how many
    trivial messages a second go to clients and back.

    \b
    Example:
      fedpress bench engine --workers 4
    """
    with _clear_errors("simulation"):
        _check_writable(json_file)
        from rich.console import Console

        from fedpress.simulations import engine_bench, progress

        figures = engine_bench.run(messages, workers, repetitions)
        facts = [
            ("workers", str(figures.workers)),
            ("start", f"{figures.start_seconds:.2f} s"),
            ("messages a second", f"{figures.messages_per_second:,.0f}"),
        ]
        progress.print_facts(Console(), facts)
        _write_json(json_file, figures._asdict())


@bench.command("codec")
def bench_codec(
    size: Annotated[
        int | None, typer.Option(help="Entries of the vector (1000000, or all that DATA has).", **COUNT)
    ] = None,
    density: Annotated[
        float, typer.Option(metavar="P", show_default=False, help="Part of the entries that is sent (0.01).")
    ] = 0.01,
    data: Annotated[
        str, typer.Option(metavar="DATA", show_default=False, help="What the vector is like (clustered).")
    ] = "clustered",
    number_format: Annotated[
        str, typer.Option("--values", metavar="FORMAT", show_default=False, help="Number format (step).")
    ] = "step",
    payloads: Annotated[int, typer.Option(help="Different payloads to decode and add (8).", **COUNT)] = 8,
    nncodec_python: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Python of an environment with nncodec, to measure that too."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Measure time and bytes of the codec on one vector.

    Compares the client's whole step (residual, exact top-k, payload, residual: what
    recipes.fedpress does) with a
    copy of the vector, with the naive form of the same step and with Flower's dense
    serialisation, all in one run; and the positions with their entropy.

    \b
    DATA is one of
      clustered            like an update: large entries cluster by layer
      uniform              independent normal values
      equal, zeros, one-value, few-values, subnormal
                           nasty: ties, 99.9 % zero, 99.9 % one value
      FILE.npy             a float32 vector, such as an update of your own
      SCENARIO             the update of its first client in the first round, trained here
    \b
    Example:
      fedpress bench codec --size 10000000 --density 0.01
    """
    with _clear_errors("simulation"):
        _check_writable(json_file)
        from rich.console import Console

        from fedpress.simulations import codec_bench, progress

        figures = codec_bench.run(size, density, data, number_format, payloads, nncodec_python=nncodec_python)
        progress.print_facts(Console(), codec_bench.facts(figures))
        _write_json(json_file, figures._asdict())


@bench.command("reuse")
def bench_reuse(
    run: Annotated[Path, typer.Argument(metavar="RUN", **DOCUMENTED)],
    json_file: JsonOption = None,
) -> None:
    """Measure what positions would cost, coded against earlier supports.

    RUN is the folder of a run that kept its payloads (fedpress simulate digits
    --keep-payloads). Their positions are written again against the client's own last
    accepted support (own), against all places that the round before touched (union),
    and against the places where its sum is largest (top). A reference is used where
    it is shorter. The row correlated is about the positions that a selection with
    10 % of its entries from outside the own last support would send. The JSON has
    every payload.

    \b
    Example:
      fedpress bench reuse runs/digits-20261123-101500
    """
    with _clear_errors("simulation"):
        _check_writable(json_file)
        from rich.console import Console

        from fedpress.simulations import progress, reuse_bench

        coded = reuse_bench.run(run)
        made = reuse_bench.summaries(coded)
        progress.print_rows(Console(), reuse_bench.COLUMNS, reuse_bench.rows(made))
        _write_json(
            json_file,
            {
                "references": [{**one._asdict(), "gain": one.gain} for one in made],
                "payloads": [one._asdict() for one in coded],
            },
        )


FEDAVG = (
    "encoder={kind: dense, values: float32, feedback: none}",
    "server={optimizer: sgd, learning_rate: 1.0}",
    "downlink=null",
)
"""What makes a scenario dense FedAvg."""


@bench.command("paired")
def bench_paired(
    scenario: Annotated[str, typer.Argument(**DOCUMENTED)] = "digits",
    overrides: SetOption = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Change one key of the baseline; may be given again."),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="SEEDS", show_default=False, help="Such as 1-10 or 3,5,8. Default: 1-10.")
    ] = "1-10",
    json_file: JsonOption = None,
) -> None:
    """Compare a scenario with dense FedAvg, seed by seed.

    SCENARIO is as for `fedpress simulate`. Both runs of a pair share data, clients,
    initial weights and sampling; the baseline sends and gets whole float32 models, and
    its server takes the mean (optimiser sgd, rate 1) unless --baseline says otherwise.
    Prints the difference in accuracy with its 95 % interval, and the bytes saved.

    \b
    Examples:
      fedpress bench paired
      fedpress bench paired digits --set density=0.005 --seeds 1-3
      fedpress bench paired fashion-mnist-100 --baseline server.learning_rate=1.5
    """
    with _clear_errors("simulation"):
        chosen = _parse_seeds(seeds)
        _check_writable(json_file)
        from fedpress.simulations import scenario as scenarios

        ours = scenarios.load(scenario, overrides or ())
        theirs = scenarios.load(scenario, [*(overrides or ()), *FEDAVG, *(baseline or ())])
        from rich.console import Console

        from fedpress.simulations import paired, progress

        typer.echo(f"{'seed':>6}  {'scenario':>8}  {'baseline':>8}  {'difference':>10}")

        def show(pair: paired.Pair) -> None:
            typer.echo(
                f"{pair.seed:>6}  {pair.accuracy:>8.2%}  {pair.baseline_accuracy:>8.2%}"
                f"  {100 * pair.difference:>+10.2f}"
            )

        found = paired.run(ours, theirs, chosen, show)
        certain = math.isfinite(found.half_width)
        interval = f" +- {100 * found.half_width:.2f} (95 % interval)" if certain else " (one seed: no interval)"
        facts = [
            ("accuracy against the baseline", f"{100 * found.difference:+.2f} points{interval}"),
            ("bytes up", f"{found.up_ratio:,.1f}x less"),
            ("bytes up and down", f"{found.both_ratio:,.1f}x less"),
        ]
        typer.echo()
        progress.print_facts(Console(), facts)
        _write_json(
            json_file,
            {
                "scenario": ours.model_dump(mode="json"),
                "baseline": theirs.model_dump(mode="json"),
                "pairs": [{**pair._asdict(), "difference": pair.difference} for pair in found.pairs],
                "difference": found.difference,
                "half_width": found.half_width if certain else None,
                "up_ratio": found.up_ratio,
                "both_ratio": found.both_ratio,
            },
        )


@bench.command("recipes")
def bench_recipes(
    scenario: Annotated[str, typer.Argument(**DOCUMENTED)] = "digits",
    overrides: SetOption = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="RECIPE", help="Only this row of the table; may be given again.")
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="SEEDS", show_default=False, help="Such as 1-3 or 3,5,8. Default: 1-3.")
    ] = "1-3",
    json_file: JsonOption = None,
) -> None:
    """Compare the recipes on a scenario, on the same seeds.

    SCENARIO is as for `fedpress simulate`. Each row but one replaces its encoder and
    its server; the server is the best of a few tried on validation data of
    `digits`, so for another scenario, set one that suits it. Prints accuracy with its
    standard deviation over the seeds, and the bytes that a run sends up, against
    dense float32 updates as plain Flower sends them.

    \b
    Examples:
      fedpress bench recipes
      fedpress bench recipes --only dgc --seeds 101 --set evaluation.split=validation \\
          --set server.learning_rate=0.5
    """
    with _clear_errors("simulation"):
        numbers = _parse_seeds(seeds)
        _check_writable(json_file)
        from rich.console import Console

        from fedpress.simulations import recipes_bench

        rows = [
            (row.name, recipes_bench.load(scenario, row, overrides or ())) for row in recipes_bench.chosen(only or ())
        ]
        console = Console()

        def show(line: str) -> None:
            console.print(line, highlight=False, markup=False, soft_wrap=True)

        show(recipes_bench.line())
        with console.status("") as status:
            found = recipes_bench.run(
                rows,
                numbers,
                lambda name, seed: status.update(f"{name}, seed {seed}"),
                lambda outcome: show(recipes_bench.line(recipes_bench.cells(outcome))),
            )
        by_name = {name: chosen.model_dump(mode="json") for name, chosen in rows}
        _write_json(
            json_file,
            [
                {
                    **outcome._asdict(),
                    "seeds": numbers,
                    "accuracy": outcome.accuracy,
                    "spread": outcome.spread,
                    "up_ratio": outcome.up_ratio,
                    "scenario": by_name[outcome.name],
                }
                for outcome in found
            ],
        )


def _parse_seeds(text: str) -> list[int]:
    """Read "1-10" and "3,5,8"."""
    chosen: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.strip().isdigit() or (last and not last.strip().isdigit()):
            _leave(f"error: --seeds {text}: expected a range such as 1-10 or numbers such as 3,5,8", 2)
        chosen += range(int(first), int(last or first) + 1)
    if not chosen or len(set(chosen)) < len(chosen):
        _leave(f"error: --seeds {text}: expected at least one seed, and each once", 2)
    return chosen


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
