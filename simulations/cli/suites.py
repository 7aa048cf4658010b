"""`fedpress bench communication`: methods x scenarios x seeds, run and reported."""

from __future__ import annotations

import os
import platform
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpress.simulations.cli import common

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console
    from rich.status import Status

    from fedpress.simulations.suites.cells import CellStore, Event, Failure
    from fedpress.simulations.suites.suite import Cell

QUICK_ROUNDS = 6


def communication(
    suite: Annotated[str, typer.Argument(**common.DOCUMENTED)] = "digits",
    overrides: common.SetOption = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="METHOD", help="Only this method; may be given again.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="SEEDS", help="Such as 1-3 or 3,5,8, in place of the suite's.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help=f"Run only the first grid with its first seed, {QUICK_ROUNDS} rounds: about a minute."
        ),
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(help="Concurrent runs, a process each (one for each core).", **common.COUNT)
    ] = None,
    any_code: Annotated[
        bool, typer.Option("--any-code", help="Also use finished runs of other versions of the code.")
    ] = False,
    run: Annotated[
        bool,
        typer.Option(
            "--run/--no-run",
            show_default=False,
            help="Run what is missing (default), or only report the finished runs.",
        ),
    ] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for runs and figures. Default: runs/bench-SUITE.")
    ] = None,
) -> None:
    """Compare ways to send updates: accuracy against bytes.

    SUITE is one that comes with fedpress (digits, fashion-mnist, text, niid-bench) or a
    YAML file: methods x scenarios x partitions x seeds. Every cell is a whole run in a
    process of its own, kept under DIR/cells. A finished cell with the same scenario and
    code is not run again, and an interrupted one continues where it stopped. Ctrl-C
    stops; the same command continues.

    Writes tables as CSV and Parquet (runs, rounds, targets, times, coding), all of them
    in results.json, too, figures as SVG and PNG, results.md, and report.html, one
    self-contained file.

    \b
    Examples:
      fedpress bench communication --quick
      fedpress bench communication digits --only fedavg --only fedpress --seeds 1-5
      fedpress bench communication my-suite.yaml --out runs/study --jobs 4
    \b
    A suite:
      grids:
        - {scenario: digits, partitions: [iid, dirichlet-0.1], seeds: 1-3, targets: [0.9]}
      methods:
        half: {set: [encoder=fp16, downlink=null]}
    """
    with common.clear_errors("simulation"):
        from rich.console import Console

        from fedpress.simulations.suites import cells as running
        from fedpress.simulations.suites import suite as suites

        chosen = suites.load(suite)
        numbers: list[int] = []
        if seeds is not None:
            numbers = common.parse_seeds(seeds)
        changes = list(overrides or ())
        if quick:
            chosen = chosen.model_copy(update={"grids": chosen.grids[:1]})
            numbers = numbers or [chosen.grids[0].seeds[0]]
            changes += [f"rounds={QUICK_ROUNDS}"]
        folder = Path(suite).parent if suite not in suites.names() else Path()
        wanted = chosen.cells(only=only or (), seeds=numbers, overrides=changes, folder=folder)
        target = out or Path("runs", f"bench-{chosen.name}{'-quick' if quick else ''}")
        store = running.CellStore(target, any_code=any_code)
        console = Console()
        failures = []
        if run:
            failures = _run(console, wanted, store, jobs or os.cpu_count() or 1)
        from fedpress.simulations.suites import measures, page

        tables = measures.measure(chosen, wanted, store)
        if tables.runs.empty:
            common.leave("error: no run is finished, so there are no figures", 1)
        tables.save(target)
        parts = page.parts(chosen, wanted, store, tables)
        facts = _facts(tables.runs, quick)
        shown = {(part.task, part.partition) for part in parts}
        if absent := [pair for pair in dict.fromkeys((c.task, c.partition) for c in wanted) if pair not in shown]:
            facts.append(("not run at all", "; ".join(", ".join(pair) for pair in absent)))
        cautions = measures.cautions(wanted, tables.runs)
        report = page.write(chosen, parts, target, facts, cautions)
        missing = len(wanted) - len(tables.runs)
        for caution in cautions:
            console.print(f"\n{caution}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"\n{len(tables.runs)} of {len(wanted)} runs; report: {report}", highlight=False, markup=False)
        if missing:
            common.leave(f"error: {missing} run(s) have no figures, {len(failures)} of them failed", 1)


def _facts(runs: DataFrame, quick: bool) -> list[tuple[str, str]]:
    """Return name and value of what the figures depend on: command, date, machine, versions."""
    codes = sorted(set(runs["code"]))
    facts = [
        ("command", " ".join(["fedpress", *sys.argv[1:]])),
        ("date", f"{datetime.now():%Y-%m-%d}"),
        ("machine", f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"),
        ("libraries", ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "flwr"))),
        ("code" if len(codes) == 1 else "codes", ", ".join(codes)),
    ]
    return [("a quick look", f"{QUICK_ROUNDS} rounds, no figures to cite"), *facts] if quick else facts


def _run(console: Console, wanted: list[Cell], store: CellStore, jobs: int) -> list[Failure]:
    from fedpress.simulations.suites import cells as running

    with console.status("") as status:
        return running.run(wanted, store, jobs, lambda event: _show(console, status, event, store))


def _show(console: Console, status: Status, event: Event, store: CellStore) -> None:
    from rich.text import Text

    from fedpress.simulations.report import plain

    left = "" if event.seconds_left is None else f"about {_duration(event.seconds_left)} left"
    if event.finished is None:
        at_work = ", ".join(f"{cell.method} seed {cell.seed}, round {rounds}" for cell, rounds in event.running)
        status.update(Text(plain.printable(f"{event.done}/{event.total}  {at_work}  {left}")))  # no markup
        return
    cell = event.finished
    if event.failure is not None:
        what = f"failed: {event.failure.text}"
    else:
        results = store.results(cell)
        assert results is not None
        what = f"{results.accuracy or 0:.2%}, {results.totals.both_bytes / 1e6:,.2f} MB"
    line = f"{event.done}/{event.total}  {cell.task} {cell.partition}  {cell.method}  seed {cell.seed}: {what}  {left}"
    console.print(plain.printable(line), highlight=False, markup=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    """Return a duration such as `40 s`, `12 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
