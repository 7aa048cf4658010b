"""`fedpress report` and `inspect`: pages and figures of runs, and the contents of files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedpress.simulations.cli import common


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]", **common.DOCUMENTED)],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Path of the page. Default: RUN/report.html; comparison.html for several."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write every figure as an SVG and a PNG file into DIR, for print."),
    ] = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(metavar="MB", help="Of several runs: accuracy by so many megabytes; may be given again."),
    ] = None,
    target: Annotated[
        float | None, typer.Option(metavar="ACCURACY", help="Of several runs: cost to it, such as 0.6.")
    ] = None,
    tensorboard: common.TensorboardOption = False,
) -> None:
    """Write a run's report, or one page that compares several runs.

    RUN is a run folder. A page is one self-contained HTML file for light and dark
    screens. `fedpress simulate` writes report.html at its end; this command writes it
    again, also for a run that was stopped half-way.

    The page of several runs has their curves, a table, and the keys in which their
    scenarios differ. Runs of one scenario with different seeds are one curve with a
    band, and one row. An unfinished run is shown up to its last round.

    It also says how accurate each was within a budget of bytes in both directions
    (--budget; by default what each run spent), what an accuracy cost (--target; by
    default the greatest that all reached), and what runs lost that differ in partition,
    network or faults alone.

    --tensorboard writes the same event files as `fedpress simulate --tensorboard`.

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
            if budget or target is not None:
                common.leave("error: --budget and --target compare runs; expected several, and got one", 2)
            typer.echo(run_page.write(runs[0], out))
            written = run_page.write_figures(runs[0], figures) if figures else []
        else:
            if any(not size > 0 for size in budget or ()):
                common.leave("error: --budget: expected megabytes above 0", 2)
            if target is not None and not 0 < target <= 1:
                common.leave(f"error: --target {target:g}: expected an accuracy above 0 and up to 1, such as 0.6", 2)
            asked = comparison_page.Asked([1e6 * size for size in budget or ()], target)
            typer.echo(comparison_page.write(runs, out or Path("comparison.html"), asked))
            written = comparison_page.write_figures(runs, figures) if figures else []
        if tensorboard:
            with common.clear_errors("tensorboard"):
                from fedpress.simulations.report import event_files
            written += [event_files.write(run) for run in runs]
        for path in written:
            typer.echo(path)


def inspect(
    path: Annotated[Path, typer.Argument(metavar="FILE|DIR", **common.DOCUMENTED)],
    key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Ed25519 public key that must verify the bundle's signature.")
    ] = None,
    json_file: common.JsonOption = None,
) -> None:
    """Verify a payload, bundle or run and show its contents.

    FILE is an encoded update or a student's bundle; DIR is a run folder. A damaged file
    is an error that names the fault (exit code 2), and so is a bundle whose signature
    --key does not verify.

    \b
    Examples:
      fedpress inspect runs/digits-20261123-101500
      fedpress inspect student.fpb --key signing.pub.pem --json manifest.json
    """
    with common.clear_errors("server", json_file):
        from fedpress.simulations.cli import inspection

        inspected = inspection.inspect(path, key)
        typer.echo(f"{path}: a {inspected.kind}")
        common.show_facts(inspected.facts)
        if inspected.rows:
            typer.echo()
            common.show_rows(inspected.columns, inspected.rows)
        common.write_json(json_file, inspected.data)
