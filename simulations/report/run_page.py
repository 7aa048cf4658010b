"""Report of a run: one self-contained HTML file for light and dark screens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import jinja2
from markupsafe import Markup

from fedpress.compression.files import write_atomically
from fedpress.compression.ledger import Ledger
from fedpress.simulations.report import drawings as report_drawings
from fedpress.simulations.report import figures, series, tables, units
from fedpress.simulations.report.drawings import Drawing
from fedpress.simulations.report.figures import Bar
from fedpress.simulations.report.units import format_bytes
from fedpress.simulations.results.records import Results, StudentResult
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.scenario import yaml_source

MOST_LAYERS = 40  # in the figure; the page says how many there are


def write(path: Path | str, out: Path | None = None) -> Path:
    """Write the page from a run folder's results.json and ledger.csv, and return its path.

    Args:
        path: The run folder.
        out: Path of the page; None: report.html in the folder.

    Raises:
        RunFolderError: There is no such folder, it is not a run's, or its results.json or ledger.csv is damaged.
    """
    run = RunFolder.open(path)
    target = out or run.report
    write_atomically(target, render(run.load_results(), run.load_ledger()).encode())
    return target


def write_figures(path: Path | str, folder: Path) -> list[Path]:
    """Write the page's figures, each as SVG and PNG, and return the paths.

    Args:
        path: The run folder.
        folder: Folder for the files, created if needed.

    Raises:
        RunFolderError: As `write`.
    """
    run = RunFolder.open(path)
    return report_drawings.save(drawings(run.load_results(), run.load_ledger()), folder)


def environment() -> jinja2.Environment:
    """Return the Jinja environment of all pages, with their colors and number formats."""
    shared = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
    )  # fmt: skip
    shared.filters |= {
        "size": format_bytes,
        "percent": format_percent,
        "ratio": format_ratio,
        "points": format_points,
        "joules": units.format_joules,
        "claimed": tables.claimed_accuracy,
        "flowertune": tables.flowertune,
    }
    shared.globals |= {
        "light": Markup(report_drawings.css_variables(report_drawings.LIGHT)),
        "dark": Markup(report_drawings.css_variables(report_drawings.DARK)),
    }
    return shared


def render(results: Results, ledger: Ledger | None) -> str:
    """Return the page as HTML.

    Args:
        results: Figures of the run.
        ledger: Bytes of every message; None: the bytes by kind are left out, and the page says so.
    """
    refusals = Counter[str]()
    for result in results.rounds:
        refusals.update(result.reasons)
    made = [student for student in newest(results) if student.stages]
    return (
        environment()
        .get_template("page.html")
        .render(
            results=results,
            float32_bytes=4 * results.model.parameters,
            refused=sum(result.refused for result in results.rounds),
            refusals=refusals.most_common(),
            figures={drawing.name: Markup(drawing.on_page()) for drawing in drawings(results, ledger)},
            newest=made,
            cliffs=[student.tier for student in _watched(results)],
            timings=[(student.tier, timing) for student in made for timing in student.timings],
            averaged=min(series.AVERAGED, len(results.rounds)),
            most_layers=MOST_LAYERS,
            scenario=yaml_source.write(results.scenario),
        )
    )


def drawings(results: Results, ledger: Ledger | None) -> list[Drawing]:
    """Return the figures of a run for which there are data.

    Args:
        results: Figures of the run.
        ledger: Bytes of every message; None: not known.
    """
    drawn = [
        _accuracy_over_rounds(results),
        _accuracy_over_bytes(results),
        _bytes_by_kind(ledger) if ledger else None,
        _density_by_layer(results),
        _architectures(results),
        *map(_cliff, _watched(results)),
    ]
    return [drawing for drawing in drawn if drawing is not None]


def format_percent(fraction: float | None, digits: int = 1) -> str:
    """Return a percentage such as `84.1 %`.

    Args:
        fraction: None: not measured, shown as a dash.
        digits: Digits after the point.
    """
    return "–" if fraction is None else f"{100 * fraction:.{digits}f} %"


def format_ratio(ratio: float | None) -> str:
    """Return a factor such as `8.4x` or `265x`; a dash for None."""
    return "–" if ratio is None else f"{ratio:.{1 if ratio < 20 else 0}f}x"


def format_points(difference: float) -> str:
    """Return a difference of two fractions in percentage points: `−1.2`.

    >>> format_points(-0.012), format_points(-0.0001)
    ('−1.2', '0.0')
    """
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def newest(results: Results) -> list[StudentResult]:
    """Return the students of the last published version."""
    last = max((student.version for student in results.students), default=0)
    return [student for student in results.students if student.version == last]


def _watched(results: Results) -> list[StudentResult]:
    """Return the newest students whose accuracy was measured during pruning."""
    return [student for student in newest(results) if student.stages and len(student.curve) > 1]


def _accuracy_over_rounds(results: Results) -> Drawing | None:
    single, mean = series.points(results), series.running(series.points(results))
    if not single:
        return None
    label = f"mean of {series.AVERAGED} rounds, the last {format_percent(mean[-1].accuracy)}"
    curves = series.curve("one round", [single], "round"), series.curve(label, [mean], "round", smooth=True)
    return figures.accuracy_over_rounds([curve for curve in curves if curve])


def _accuracy_over_bytes(results: Results) -> Drawing | None:
    points = series.points(results)
    curves = series.curve("up", [points], "up"), series.curve("up and down", [points], "both")
    drawn = [curve for curve in curves if curve]
    return figures.accuracy_over_bytes(drawn, results.totals.dense_up_bytes or None) if drawn else None


def _bytes_by_kind(ledger: Ledger) -> Drawing | None:
    sizes = Counter[tuple[str, str]]()
    for entry in ledger.rows:
        sizes[entry.direction, entry.kind] += entry.bytes
    total = sizes.total()
    items = [
        Bar(f"{direction}: {kind}", size, f"{format_bytes(size)} ({_share(size / total)})")
        for direction in ("up", "down")
        for (found, kind), size in sizes.most_common()
        if found == direction and size
    ]
    return figures.bars("bytes-by-kind", items) if items else None


def _share(fraction: float) -> str:
    return "< 0.1 %" if fraction < 0.001 else format_percent(fraction)


def _architectures(results: Results) -> Drawing | None:
    """Return the plot of the candidates that searches of the last version distilled, of all tiers."""
    tried = [
        figures.Tried(one.parameters, one.accuracy, one.uniform, one.chosen)
        for student in newest(results)
        for one in student.candidates
        if one.accuracy is not None
    ]
    return figures.pareto(tried, "parameters") if tried else None


def _cliff(student: StudentResult) -> Drawing:
    cuts = [figures.Cut(1 - step.kept, step.accuracy, step.taken) for step in student.curve]
    return figures.cliff(cuts, f"pruning-{student.tier}")


def _density_by_layer(results: Results) -> Drawing | None:
    parts = [(layer.name, layer.density, layer.size) for layer in results.layers[:MOST_LAYERS]]
    size = sum(layer.size for layer in results.layers)
    if not size:
        return None
    parts.append(("whole model", sum(layer.sent for layer in results.layers) / size, size))
    items = [Bar(name, density, f"{format_percent(density, 2)} of {size:,}") for name, density, size in parts]
    return figures.bars("density-by-layer", [*items[:-1], items[-1]._replace(whole=True)])
