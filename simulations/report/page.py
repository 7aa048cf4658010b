"""The report of a run: one HTML file that needs nothing else, readable on light and dark screens."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from pathlib import Path
from statistics import fmean

import jinja2
import yaml
from markupsafe import Markup

from fedpress.compression.files import write_atomically
from fedpress.compression.ledger import Ledger
from fedpress.simulations import inspection
from fedpress.simulations.report import figures
from fedpress.simulations.report.figures import Bar, Curve, format_bytes
from fedpress.simulations.run_folder import Results, RunFolder, RunFolderError, StudentResult

TEMPLATE = Path(__file__).with_name("page.html")
AVERAGED = 10  # rounds that a run's accuracy is the mean of
MOST_LAYERS = 40  # a figure of more cannot be read; the rest is said in words


def write(path: Path | str) -> Path:
    """Makes report.html from a run folder's results.json and ledger.csv, and returns its path.

    Raises:
        RunFolderError: there is no such folder, it is not a run's, or its results.json or ledger.csv is torn.
    """
    run = RunFolder.open(path)
    try:
        ledger = Ledger.load(run.ledger) if run.ledger.is_file() else None
    except ValueError as error:
        raise RunFolderError(str(error)) from error
    write_atomically(run.report, render(run.load_results(), ledger).encode())
    return run.report


def render(results: Results, ledger: Ledger | None) -> str:
    """The page as text. Without a ledger, the bytes by kind are left out and the page says so."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "size": format_bytes,
        "percent": format_percent,
        "ratio": format_ratio,
        "points": format_points,
        "joules": inspection.format_joules,
    }
    refusals = Counter[str]()
    for result in results.rounds:
        refusals.update(result.reasons)
    last = max((student.version for student in results.students), default=0)
    newest = [student for student in results.students if student.version == last and student.stages]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        results=results,
        float32_bytes=4 * results.model.parameters,
        refused=sum(result.refused for result in results.rounds),
        refusals=refusals.most_common(),
        accuracy_over_rounds=Markup(_accuracy_over_rounds(results)),
        accuracy_over_bytes=Markup(_accuracy_over_bytes(results)),
        bytes_by_kind=Markup(_bytes_by_kind(ledger) if ledger else ""),
        density_by_layer=Markup(_density_by_layer(results)),
        architectures=Markup(_architectures(results)),
        newest=newest,
        cliffs=[(student.tier, Markup(_cliff(student))) for student in newest if len(student.curve) > 1],
        timings=[(student.tier, timing) for student in newest for timing in student.timings],
        averaged=min(AVERAGED, len(results.rounds)),
        most_layers=MOST_LAYERS,
        scenario=yaml.safe_dump(results.scenario, sort_keys=False, allow_unicode=True),
    )


def format_percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as `84.1 %`; a dash for what was not measured."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f} %"


def format_ratio(ratio: float | None) -> str:
    """A factor as `8.4x` or `265x`; a dash for what was not measured."""
    return "–" if ratio is None else f"{ratio:.{1 if ratio < 20 else 0}f}x"


def format_points(difference: float) -> str:
    """A difference of two fractions in points: `−1.2`.

    >>> format_points(-0.012), format_points(-0.0001)
    ('−1.2', '0.0')
    """
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def _accuracy_over_rounds(results: Results) -> str:
    evaluated = [(result.round, result.accuracy) for result in results.rounds if result.accuracy is not None]
    if not evaluated:
        return ""
    rounds = [number for number, _ in evaluated]
    single = Curve("one round", rounds, [accuracy for _, accuracy in evaluated])
    running = [fmean(accuracy for number, accuracy in evaluated if last - AVERAGED < number <= last) for last in rounds]
    label = f"mean of {AVERAGED} rounds, the last {format_percent(running[-1])}"
    return figures.accuracy_over_rounds(single, Curve(label, rounds, running))


def _accuracy_over_bytes(results: Results) -> str:
    """Each evaluated round at the bytes that the run had cost by its end, all clients together."""
    up = accumulate(result.up_bytes for result in results.rounds)
    both = accumulate(result.up_bytes + result.down_bytes for result in results.rounds)
    points = [
        (up_so_far, both_so_far, result.accuracy)
        for result, up_so_far, both_so_far in zip(results.rounds, up, both, strict=True)
        if result.accuracy is not None and up_so_far > 0  # a logarithmic axis has no place for nothing
    ]
    if not points:
        return ""
    up_seen, both_seen, accuracy = zip(*points, strict=True)
    curves = [Curve("up", up_seen, accuracy), Curve("up and down", both_seen, accuracy)]
    return figures.accuracy_over_bytes(curves, results.totals.dense_up_bytes or None)


def _bytes_by_kind(ledger: Ledger) -> str:
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
    return figures.bars("kinds", items) if items else ""


def _share(fraction: float) -> str:
    return "< 0.1 %" if fraction < 0.001 else format_percent(fraction)


def _architectures(results: Results) -> str:
    """What the searches of the last version have distilled, of all tiers."""
    last = max((student.version for student in results.students), default=0)
    tried = [
        figures.Tried(one.parameters, one.accuracy, one.uniform, one.chosen)
        for student in results.students
        if student.version == last
        for one in student.candidates
        if one.accuracy is not None
    ]
    return figures.pareto(tried, "parameters") if tried else ""


def _cliff(student: StudentResult) -> str:
    return figures.cliff(
        [figures.Cut(1 - step.kept, step.accuracy, step.taken) for step in student.curve], student.tier
    )


def _density_by_layer(results: Results) -> str:
    parts = [(layer.name, layer.density, layer.size) for layer in results.layers[:MOST_LAYERS]]
    size = sum(layer.size for layer in results.layers)
    if not size:
        return ""
    parts.append(("whole model", sum(layer.sent for layer in results.layers) / size, size))
    items = [Bar(name, density, f"{format_percent(density, 2)} of {size:,}") for name, density, size in parts]
    return figures.bars("layers", [*items[:-1], items[-1]._replace(whole=True)])
