"""Report of a suite: an HTML page, figures as files, and tables as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup

from fedpress.compression.files import write_atomically
from fedpress.simulations.report import confidence, drawings, figures, plain, run_page, series, units
from fedpress.simulations.report.drawings import Drawing
from fedpress.simulations.report.figures import Bar, DotRow, Mark, StackedBar
from fedpress.simulations.report.units import format_bytes
from fedpress.simulations.results.records import Results
from fedpress.simulations.suites.cells import CellStore
from fedpress.simulations.suites.measures import SMOOTHED, Tables
from fedpress.simulations.suites.suite import Cell, Suite

ROUNDS = 5
"""Number of rounds in the table of accuracy by round."""
TICKS = (1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 86400.0, 10 * 86400.0, 100 * 86400.0)
"""Ticks of an axis of seconds."""


class MeanEstimate(NamedTuple):
    """A mean over seeds; `half_width`: of its 95 % interval, None for one seed."""

    mean: float
    half_width: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanEstimate | None:
        """Return the mean; None without values, or where one is missing, since not all seeds have reached it."""
        known = [float(value) for value in values if not pd.isna(value)]
        if not known or len(known) < len(values):
            return None
        width = confidence.half_width(known)
        return cls(fmean(known), width if math.isfinite(width) else None)


class SuiteLine(NamedTuple):
    """Figures of a method on one task and partition, means over its seeds."""

    method: str
    title: str
    source: str
    seeds: int
    accuracy: MeanEstimate
    up: float
    down: float
    up_bits: float
    down_bits: float
    up_ratio: float
    both_ratio: float
    reached: dict[float, dict[str, MeanEstimate | None]]  # by target accuracy: round, total_bytes, up_bytes
    at_rounds: dict[int, MeanEstimate | None]
    at_bytes: dict[float, MeanEstimate | None]
    times: dict[float, dict[str, tuple[MeanEstimate, MeanEstimate] | None]]  # by target and network: s, J
    encode_ms: float | None
    decode_ms: float | None


class SuiteFigure(NamedTuple):
    """A drawing with its title and caption."""

    title: str
    caption: str
    drawing: Drawing


class PagePart(NamedTuple):
    """Section of the page: one task with one partition."""

    task: str
    partition: str
    rounds: int
    targets: list[float]
    lines: list[SuiteLine]
    missing: list[str]  # methods with unfinished cells
    figures: list[SuiteFigure]

    @property
    def name(self) -> str:
        """Return a name for files and links."""
        return f"{self.task}-{self.partition}"

    def timed(self, aim: float) -> list[SuiteLine]:
        """Return the lines that have a time to a target accuracy."""
        return [line for line in self.lines if any(line.times[aim].values())]


def parts(suite: Suite, cells: Sequence[Cell], store: CellStore, tables: Tables) -> list[PagePart]:
    """Return the sections of the page in the order of the suite, without those that have no finished cell.

    Args:
        suite: The suite.
        cells: Its cells.
        store: Where their runs are stored.
        tables: Figures of the finished cells.
    """
    sections = []
    for task, partition in dict.fromkeys((cell.task, cell.partition) for cell in cells):
        here = [cell for cell in cells if (cell.task, cell.partition) == (task, partition)]
        if part := _part(suite, task, partition, here, store, tables):
            sections.append(part)
    return sections


def _part(
    suite: Suite, task: str, partition: str, cells: Sequence[Cell], store: CellStore, tables: Tables
) -> PagePart | None:
    def within(table: pd.DataFrame) -> pd.DataFrame:
        return table[(table["task"] == task) & (table["partition"] == partition)] if len(table) else table

    runs, rounds, targets = within(tables.runs), within(tables.rounds), within(tables.targets)
    if runs.empty:
        return None
    present = set(runs["method"])
    methods = [name for name in suite.known if name in present]
    aims = sorted(set(targets["target"])) if len(targets) else []
    budgets = _budgets(runs)
    last = int(runs["rounds"].max())
    marks = sorted({max(1, round(last * step / ROUNDS)) for step in range(1, ROUNDS + 1)})
    lines = []
    for name in methods:
        own = runs[runs["method"] == name]
        curve = rounds[rounds["method"] == name]
        by_seed = [curve[curve["seed"] == seed] for seed in own["seed"]]
        reached = targets[targets["method"] == name] if len(targets) else targets
        coding = tables.coding[(tables.coding["task"] == task) & (tables.coding["method"] == name)]
        accuracy = MeanEstimate.of(list(own["accuracy"]))
        assert accuracy is not None
        up, down = own["up_bytes"].sum(), own["down_bytes"].sum()
        dense = own["dense_up_bytes"].sum() + own["dense_down_bytes"].sum()
        lines.append(
            SuiteLine(
                method=name,
                title=suite.known[name].title or name,
                source=suite.known[name].source,
                seeds=len(own),
                accuracy=accuracy,
                up=up / len(own),
                down=down / len(own),
                up_bits=own["up_bits_per_parameter"].mean(),
                down_bits=own["down_bits_per_parameter"].mean(),
                up_ratio=own["dense_up_bytes"].sum() / up,
                both_ratio=dense / (up + down),
                reached={
                    aim: {
                        key: MeanEstimate.of(list(reached[reached["target"] == aim][key]))
                        for key in ("round", "total_bytes", "up_bytes")
                    }
                    for aim in aims
                },
                at_rounds={mark: MeanEstimate.of([_at(one, "round", mark) for one in by_seed]) for mark in marks},
                at_bytes={
                    size: MeanEstimate.of([_at(one, "total_bytes", size) for one in by_seed]) for size in budgets
                },
                times={
                    aim: {link: _time(within(tables.times), name, aim, link, len(own)) for link in suite.networks}
                    for aim in aims
                },
                encode_ms=_only(coding, "encode_ms"),
                decode_ms=_only(coding, "decode_ms"),
            )
        )
    missing = [name for name in dict.fromkeys(cell.method for cell in cells if store.results(cell) is None)]
    part = PagePart(task, partition, last, aims, lines, missing, [])
    return part._replace(figures=_figures(part, cells, store))


def _time(
    times: pd.DataFrame, method: str, aim: float, link: str, seeds: int
) -> tuple[MeanEstimate, MeanEstimate] | None:
    """Return seconds and joules to a target accuracy on a network; None where not all seeds reached it."""
    if times.empty:
        return None
    own = times[(times["method"] == method) & (times["target"] == aim) & (times["network"] == link)]
    seconds, joules = MeanEstimate.of(list(own["seconds"])), MeanEstimate.of(list(own["joules"]))
    return (seconds, joules) if seconds and joules and len(own) == seeds else None


def _only(table: pd.DataFrame, key: str) -> float | None:
    values = [value for value in table[key] if not pd.isna(value)] if len(table) else []
    return float(values[0]) if values else None


def _at(curve: pd.DataFrame, key: str, most: float) -> float:
    """Return the mean of the last few accuracies while `key` is at most `most`; NaN without one."""
    seen = curve[curve[key] <= most]
    return float(seen["accuracy"].tail(SMOOTHED).mean()) if len(seen) else math.nan


def _budgets(runs: pd.DataFrame) -> list[float]:
    """Return the powers of ten between the fewest and the most bytes of a run."""
    least, most = runs["total_bytes"].min(), runs["total_bytes"].max()
    return [10.0**power for power in range(math.ceil(math.log10(least)), math.floor(math.log10(most)) + 1)]


def _figures(part: PagePart, cells: Sequence[Cell], store: CellStore) -> list[SuiteFigure]:
    def named(what: str) -> str:
        return f"{part.name}-{what}".replace(".", "_")

    several = max(line.seeds for line in part.lines) > 1
    band = " Bands: from the least to the greatest of the seeds; the line is their mean." if several else ""
    running = f"Mean of the last {series.AVERAGED} rounds; bytes of all clients, logarithmic.{band}"
    drawn = []
    axes: tuple[tuple[series.Axis, str], ...] = (("both", "bytes up and down"), ("up", "bytes up"))
    for axis, words in axes:
        curves = []
        for line in part.lines:
            points = [series.running(series.points(found)) for found in _finished(cells, line.method, store)]
            if curve := series.curve(line.title, points, axis, smooth=True):
                curves.append(curve)
        name = named(f"accuracy-over-bytes-{axis}")
        drawing = figures.accuracy_over_bytes(curves, name=name, xlabel=f"{words} so far")
        drawn.append(SuiteFigure(f"Accuracy over {words}", running, drawing))
    marks = []
    for line in part.lines:
        ends = [one.accuracy or 0.0 for one in _finished(cells, line.method, store)]
        marks.append(Mark(line.title, line.up + line.down, line.accuracy.mean, min(ends), max(ends)))
    spread = " Lines: from the least to the greatest of the seeds." if several else ""
    drawn.append(
        SuiteFigure(
            "Accuracy at the end and bytes of the run",
            f"The step is the Pareto front, full marks are on it: nothing cheaper is better.{spread}",
            figures.tradeoff(named("pareto"), marks, "bytes up and down of a run"),
        )
    )
    stacks = [StackedBar(line.title, (line.up, line.down), format_bytes(line.up + line.down)) for line in part.lines]
    drawing = figures.stacked(named("up-and-down"), ("up", "down"), stacks)
    drawn.append(SuiteFigure("Bytes up and down", "Whole messages of all clients in a run.", drawing))
    for aim in part.targets:
        drawn += _to_target(part, aim, named)
    return drawn


def _finished(cells: Sequence[Cell], method: str, store: CellStore) -> list[Results]:
    return [found for cell in cells if cell.method == method and (found := store.results(cell))]


def _to_target(part: PagePart, aim: float, named: Callable[[str], str]) -> list[SuiteFigure]:
    """Return the figures of bytes and of time to a target accuracy."""
    drawn, percent = [], f"{100 * aim:g} %"
    known = [(line.title, line.reached[aim]["total_bytes"]) for line in part.lines]
    sizes = [estimate.mean for _, estimate in known if estimate is not None]
    if sizes:
        zero = math.log10(min(sizes)) - 0.5
        bars = [Bar(title, 0.0 if one is None else math.log10(one.mean) - zero, _bytes(one)) for title, one in known]
        drawing = figures.bars(named(f"bytes-to-{100 * aim:g}"), bars)
        drawn.append(SuiteFigure(f"Bytes to {percent}", "Up and down; the bars are logarithmic.", drawing))
    if timed := part.timed(aim):
        rows = [DotRow(line.title, [one and one[0].mean for one in line.times[aim].values()]) for line in timed]
        name = named(f"time-to-{100 * aim:g}")
        drawing = figures.dots(name, list(timed[0].times[aim]), rows, f"time to {percent}", format_seconds, TICKS)
        drawn.append(SuiteFigure(f"Time to {percent}", "Runs replayed on these networks; logarithmic.", drawing))
    return drawn


def _bytes(estimate: MeanEstimate | None) -> str:
    return "not reached" if estimate is None else format_bytes(estimate.mean)


def format_seconds(seconds: float) -> str:
    """Return a duration in a suitable unit.

    >>> format_seconds(42.0), format_seconds(600.0), format_seconds(9000.0), format_seconds(86400.0)
    ('42 s', '10 min', '2.5 h', '1 d')
    """
    for unit, size, most in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 86400)):
        if seconds < most:
            digits = 1 if seconds / size < 9.95 and unit != "s" else 0
            return f"{seconds / size:.{digits}f} {unit}".replace(".0 ", " ")
    return f"{seconds / 86400:.1f} d".replace(".0 ", " ")


def write(
    suite: Suite,
    sections: Sequence[PagePart],
    folder: Path,
    facts: Sequence[tuple[str, str]],
    cautions: Sequence[str] = (),
) -> Path:
    """Write report.html, results.md and the figures, and return the path of the page.

    Args:
        suite: The suite.
        sections: What `parts` returned.
        folder: Folder for the files.
        facts: Name and value of what the figures depend on: command, machine, date.
        cautions: Sentences at the head of the page on what the figures do not say.
    """
    environment = run_page.environment()
    environment.filters |= {
        "spent": spent,
        "estimate": estimate,
        "seconds": format_seconds,
        "milliseconds": milliseconds,
    }
    values: dict[str, Any] = {"suite": suite, "parts": sections, "facts": facts, "cautions": cautions}
    values["smoothed"] = SMOOTHED
    html = environment.get_template("benchmark.html").render(**values, markup=_markup)
    target = folder / "report.html"
    write_atomically(target, html.encode())
    write_atomically(folder / "results.md", markdown(sections, facts, cautions).encode())
    drawings.save([figure.drawing for part in sections for figure in part.figures], folder / "figures")
    return target


def _markup(drawing: Drawing) -> Markup:
    return Markup(drawing.on_page())


def estimate(value: MeanEstimate | None, form: Callable[[float], str] = run_page.format_percent) -> str:
    """Return a mean as text, for a percentage with its interval: `97.1 ± 0.4 %`.

    Args:
        value: None: not known, shown as a dash.
        form: Formats the mean.
    """
    if value is None:
        return "–"
    text = form(value.mean)
    if form is run_page.format_percent and value.half_width is not None:
        return text.replace(" %", f" ± {100 * value.half_width:.1f} %")
    return text


def milliseconds(value: float | None) -> str:
    """Return a duration with two significant digits."""
    return "–" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def markdown(sections: Sequence[PagePart], facts: Sequence[tuple[str, str]], cautions: Sequence[str] = ()) -> str:
    """Return the tables as Markdown.

    Args:
        sections: What `parts` returned.
        facts: Name and value of what the figures depend on.
        cautions: Sentences at the head.
    """
    lines = [
        "# Accuracy against bytes",
        "",
        *(line for text in cautions for line in (f"**{plain.markdown(text)}.**", "")),
        *(f"* {plain.markdown(name)}: {plain.markdown(value)}" for name, value in facts),
        "",
    ]
    for part in sections:
        lines += [f"## {plain.markdown(part.task)}, {plain.markdown(part.partition)}", ""]
        heads = ["method", "seeds", "accuracy", "up", "down", "bits a parameter up", "fewer up", "fewer in all"]
        heads += [f"{what} to {100 * aim:g} %" for aim in part.targets for what in ("rounds", "bytes")]
        lines += [_row(heads), _row(["---"] * len(heads))]
        for line in part.lines:
            cells = [
                line.title,
                str(line.seeds),
                estimate(line.accuracy),
                format_bytes(line.up),
                format_bytes(line.down),
                f"{line.up_bits:.3g}",
                run_page.format_ratio(line.up_ratio),
                run_page.format_ratio(line.both_ratio),
            ]
            for aim in part.targets:
                reached = line.reached[aim]
                cells += [estimate(reached["round"], lambda value: f"{value:.0f}"), _bytes(reached["total_bytes"])]
            lines.append(_row(cells))
        for aim in part.targets:
            if part.timed(aim):
                links = list(part.lines[0].times[aim])
                lines += [
                    "",
                    f"Time to {100 * aim:g} % on other networks, and joules that the clients' radios spend:",
                    "",
                ]
                lines += [_row(["method", *links]), _row(["---"] * (1 + len(links)))]
                lines += [_row([line.title, *map(spent, line.times[aim].values())]) for line in part.lines]
        lines += ["", "One update of a real client, on one thread:", "", _row(["method", "encode, ms", "decode, ms"])]
        lines.append(_row(["---"] * 3))
        lines += [_row([line.title, milliseconds(line.encode_ms), milliseconds(line.decode_ms)]) for line in part.lines]
        if part.missing:
            lines += ["", f"Not run, or not with all seeds: {plain.markdown(', '.join(part.missing))}."]
        lines.append("")
    return "\n".join(lines)


def spent(cost: tuple[MeanEstimate, MeanEstimate] | None) -> str:
    """Return seconds and joules as text; a dash for None."""
    return "–" if cost is None else f"{format_seconds(cost[0].mean)}, {units.format_joules(cost[1].mean)}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(plain.markdown, cells))} |"
