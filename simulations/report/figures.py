"""Figures of reports, each a `Drawing`: curves, bars, dots, Pareto fronts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

from fedpress.simulations.report import plain, units
from fedpress.simulations.report.drawings import FIRST, INK, MUTED, SECOND, SERIES, WIDTH, Colors, Drawing

LETTER: Final = 6.3  # points that a letter of 10-point text takes, rather too many than too few
MOST_LETTERS: Final = 30  # of a bar's label
LEGEND_LETTERS: Final = 58  # of a row of a legend
SAMPLE_LETTERS: Final = 7  # what the sample of a line beside its label takes
DASHES: Final[tuple[Any, ...]] = (
    "-", (0, (5, 1.6)), (0, (1.3, 1.3)), (0, (6, 1.6, 1.2, 1.6)), (0, (9, 2.4)), (0, (4, 1.4, 1.2, 1.4, 1.2, 1.4)),
)  # fmt: skip
"""Dashes of curves, which distinguish them in print without colors; the seventh curve has the first color again."""
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")


class Curve(NamedTuple):
    """One line of a figure, with an optional band.

    Attributes:
        label: Text in the legend.
        x, y: Points of the line.
        low, high: Edges of the band; empty: there is none.
        smooth: Whether it is a running mean, drawn without marks.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    smooth: bool = False


class Bar(NamedTuple):
    """One bar: its name, its length, the text at its end, and whether it is the total of the others."""

    label: str
    length: float
    text: str
    whole: bool = False


def accuracy_over_rounds(curves: Sequence[Curve], name: str = "accuracy-over-rounds") -> Drawing:
    """Return a plot of accuracy over rounds; more than two curves differ in their dashes, too.

    Args:
        curves: Each with at least one point; y is a fraction.
        name: Name of the figure's files.
    """
    labels = [_shortened(curve.label, LEGEND_LETTERS - SAMPLE_LETTERS) for curve in curves]

    def draw(axes: Axes, colors: Colors) -> None:
        _plot_all(axes, curves, labels, colors)
        axes.set_xlim(0, 1.02 * max(curve.x[-1] for curve in curves))
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        _accuracy_axis(axes, _columns(labels))

    return Drawing(name, _height(labels), draw)


def accuracy_over_bytes(
    curves: Sequence[Curve],
    dense: float | None = None,
    name: str = "accuracy-over-bytes",
    dense_label: str = "dense, up",
    xlabel: str = "bytes so far",
) -> Drawing:
    """Return a plot of accuracy over bytes (log scale), with the cost of dense messages as a vertical line.

    Args:
        curves: Each with at least one point; x above 0, y a fraction.
        dense: Bytes of dense messages; None: no line.
        name: Name of the figure's files.
        dense_label: Label of the line, before its bytes.
        xlabel: Label of the axis of bytes.
    """
    labels = [_shortened(curve.label, LEGEND_LETTERS - SAMPLE_LETTERS) for curve in curves]
    line = [f"{dense_label}: {units.format_bytes(dense)}"] if dense is not None else []

    def draw(axes: Axes, colors: Colors) -> None:
        _plot_all(axes, curves, labels, colors)
        axes.set_xscale("log")
        for label in line:
            axes.axvline(dense or 0, color=colors[MUTED], linewidth=1.2, linestyle=(0, (4, 3)), label=label)
        axes.set_xlabel(xlabel)
        ends = [size for curve in curves for size in curve.x] + [dense or curves[0].x[0]]
        few = max(ends) < 30 * min(ends)  # too few powers of ten to read the axis by
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(_round_bytes))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _accuracy_axis(axes, _columns([*labels, *line]))

    return Drawing(name, _height([*labels, *line]), draw)


class StackedBar(NamedTuple):
    """A bar of several parts in a row, and the text at its end."""

    label: str
    parts: Sequence[float]
    text: str


def stacked(name: str, parts: Sequence[str], items: Sequence[StackedBar]) -> Drawing:
    """Return horizontal bars, each divided into parts.

    Args:
        name: Name of the figure's files.
        parts: Names of the parts, at most six.
        items: The bars, from top to bottom.
    """
    labels = [_shortened(item.label, MOST_LETTERS) for item in items]

    def draw(axes: Axes, colors: Colors) -> None:
        left = [0.0] * len(items)
        for number, part in enumerate(parts):
            lengths = [item.parts[number] for item in items]
            axes.barh(range(len(items)), lengths, height=0.62, left=left, color=colors[SERIES[number]], label=part)
            left = [begin + length for begin, length in zip(left, lengths, strict=True)]
        _label_bars(axes, labels, left, [item.text for item in items], colors)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(parts), borderaxespad=0, borderpad=0.3)

    return Drawing(name, 0.5 + 0.26 * len(items), draw)


class DotRow(NamedTuple):
    """A row of `dots`: a value for each series; None: there is none."""

    label: str
    values: Sequence[float | None]


def dots(
    name: str,
    series: Sequence[str],
    rows: Sequence[DotRow],
    xlabel: str,
    form: Callable[[float], str],
    ticks: Sequence[float],
) -> Drawing:
    """Return a dot plot: a row for each item with a mark for each series, over a logarithmic axis.

    Args:
        name: Name of the figure's files.
        series: Names of the series, at most six.
        rows: The rows from top to bottom; at least one value above 0.
        xlabel: Label of the axis.
        form: Formats a value for the axis.
        ticks: Candidates for the ticks; those within the range are shown.
    """
    labels = [_shortened(row.label, MOST_LETTERS) for row in rows]

    def draw(axes: Axes, colors: Colors) -> None:
        for number, one in enumerate(series):
            marks = [(row.values[number], place) for place, row in enumerate(rows)]
            known = [(value, place) for value, place in marks if value is not None]
            axes.plot(
                [value for value, _ in known], [place for _, place in known], linestyle="", marker=MARKERS[number],
                markersize=6, color=colors[SERIES[number]], label=one,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yticks(range(len(rows)), labels, color=colors[INK])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(xlabel)
        axes.margins(x=0.08)
        low, high = axes.get_xlim()
        axes.set_xticks([tick for tick in ticks if low <= tick <= high])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="both")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0, borderpad=0.3)

    return Drawing(name, 0.9 + 0.19 * math.ceil(len(series) / 3) + 0.24 * len(rows), draw)


class Mark(NamedTuple):
    """A point of `tradeoff`; `low` and `high` are the least and the greatest accuracy over the seeds."""

    label: str
    size: float
    accuracy: float
    low: float
    high: float


def tradeoff(name: str, marks: Sequence[Mark], xlabel: str) -> Drawing:
    """Return a plot of accuracy (fractions) over bytes (log scale), with the Pareto front.

    Args:
        name: Name of the figure's files.
        marks: At least one.
        xlabel: Label of the axis of bytes.
    """
    labels = [_shortened(mark.label, LEGEND_LETTERS) for mark in marks]
    best = front(marks)

    def draw(axes: Axes, colors: Colors) -> None:
        sizes, accuracies = [mark.size for mark in best], [mark.accuracy for mark in best]
        last = max(mark.size for mark in marks)
        axes.step([*sizes, last], [*accuracies, accuracies[-1]], where="post", color=colors[MUTED], linewidth=1.2)
        for number, (mark, label) in enumerate(zip(marks, labels, strict=True)):
            color = colors[SERIES[number % len(SERIES)]]
            axes.plot([mark.size, mark.size], [mark.low, mark.high], color=color, linewidth=1.2)
            axes.plot(
                [mark.size], [mark.accuracy], linestyle="", marker=MARKERS[number % len(MARKERS)], markersize=7,
                color=color, label=label, markerfacecolor=color if mark in best else "none",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(_round_bytes))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.08)
        _accuracy_axis(axes, _columns(labels))

    return Drawing(name, _height(labels), draw)


class Sized(Protocol):
    """A point with a size and an accuracy, as `front` needs it."""

    @property
    def size(self) -> float:
        """Cost: bytes or parameters."""

    @property
    def accuracy(self) -> float:
        """A fraction."""


S = TypeVar("S", bound=Sized)


def front(points: Sequence[S]) -> list[S]:
    """Return the Pareto front, from the smallest point on: no smaller point is as accurate.

    >>> marks = [Mark("a", 1, 0.8, 0.8, 0.8), Mark("b", 2, 0.7, 0.7, 0.7), Mark("c", 3, 0.9, 0.9, 0.9)]
    >>> [mark.label for mark in front(marks)]
    ['a', 'c']
    """
    best: list[S] = []
    for point in sorted(points, key=lambda point: (point.size, -point.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def bars(name: str, items: Sequence[Bar]) -> Drawing:
    """Return horizontal bars, each with a text at its end.

    Args:
        name: Name of the figure's files.
        items: The bars, from top to bottom.
    """
    labels = [_shortened(item.label, MOST_LETTERS) for item in items]

    def draw(axes: Axes, colors: Colors) -> None:
        places = range(len(items))
        shades = [colors[SECOND if item.whole else FIRST] for item in items]
        axes.barh(places, [item.length for item in items], height=0.62, color=shades)
        texts = [plain.printable(item.text) for item in items]
        _label_bars(axes, labels, [item.length for item in items], texts, colors)

    return Drawing(name, 0.2 + 0.26 * len(items), draw)


class Tried(NamedTuple):
    """A candidate of a search for an architecture; `uniform`: all its layers are narrowed by the same factor."""

    size: float
    accuracy: float
    uniform: bool = False
    chosen: bool = False


def pareto(tried: Sequence[Tried], xlabel: str, name: str = "architectures") -> Drawing:
    """Return a plot of accuracy (fractions) over size of the candidates that a search distilled, with the Pareto front.

    Args:
        tried: At least one.
        xlabel: Label of the axis of sizes.
        name: Name of the figure's files.
    """
    best = front(tried)

    def draw(axes: Axes, colors: Colors) -> None:
        sizes, accuracies = [one.size for one in best], [one.accuracy for one in best]
        last = max(one.size for one in tried)
        axes.step(
            [*sizes, last],
            [*accuracies, accuracies[-1]],
            where="post",
            color=colors[MUTED],
            linewidth=1.2,
            label="front",
        )
        for label, marker, role, members in (
            ("distilled in the search", "o", FIRST, [one for one in tried if not one.uniform]),
            ("all layers alike", "s", SECOND, [one for one in tried if one.uniform]),
        ):
            if members:
                axes.plot(
                    [one.size for one in members], [one.accuracy for one in members], color=colors[role], marker=marker,
                    linestyle="", markersize=4.5, label=label,
                )  # fmt: skip
        chosen = [one for one in tried if one.chosen]
        axes.plot(
            [one.size for one in chosen], [one.accuracy for one in chosen], marker="o", markersize=11, linestyle="",
            markerfacecolor="none", markeredgecolor=colors[INK], markeredgewidth=1.2, label="chosen",
        )  # fmt: skip
        least = min(one.size for one in tried)
        if last > 2 * least:
            axes.set_xscale("log")
            axes.set_xlim(least / 1.15, last * 1.15)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        _accuracy_axis(axes, columns=2)
        axes.margins(y=0.12)

    return Drawing(name, 3.4, draw)


class Cut(NamedTuple):
    """A step of pruning: the fraction of parameters removed, and whether the step was taken or undone."""

    removed: float
    accuracy: float
    taken: bool


def cliff(cuts: Sequence[Cut], name: str) -> Drawing:
    """Return a plot of accuracy over the fraction of parameters removed: steps taken, the end, steps undone.

    Args:
        cuts: Steps in their order, at least one of them taken.
        name: Name of the figure's files.
    """
    taken, undone = [cut for cut in cuts if cut.taken], [cut for cut in cuts if not cut.taken]

    def draw(axes: Axes, colors: Colors) -> None:
        axes.plot(
            [cut.removed for cut in taken], [cut.accuracy for cut in taken], color=colors[FIRST], marker="o",
            markersize=4.5, linewidth=1.5, label="taken",
        )  # fmt: skip
        if undone:
            axes.plot(
                [cut.removed for cut in undone], [cut.accuracy for cut in undone], color=colors[SECOND], marker="x",
                markersize=7, linestyle="", label="undone",
            )  # fmt: skip
        axes.plot(
            [taken[-1].removed], [taken[-1].accuracy], marker="o", markersize=11, linestyle="", markerfacecolor="none",
            markeredgecolor=colors[INK], markeredgewidth=1.2, label=f"stopped here: {taken[-1].removed:.1%} removed",
        )  # fmt: skip
        axes.set_xlabel("parameters removed")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        _accuracy_axis(axes)
        axes.margins(x=0.05, y=0.12)

    return Drawing(name, 3.0, draw)


def memory_over_rounds(curves: Sequence[Curve], begin: int) -> Drawing:
    """Return a plot of the resident memory of a server (first curve) and its workers over rounds.

    Args:
        curves: One for each process; y in bytes.
        begin: Round where the warm-up ends, marked by a vertical line.
    """

    def draw(axes: Axes, colors: Colors) -> None:
        axes.plot(curves[0].x, curves[0].y, color=colors[FIRST], linewidth=1.2, label=curves[0].label)
        for number, curve in enumerate(curves[1:]):  # workers are alike: dashes let the others show through
            axes.plot(
                curve.x, curve.y, color=colors[SECOND], linewidth=1.2, linestyle=(6 * number, (6, 5)), label=curve.label
            )
        axes.axvline(begin, color=colors[MUTED], linewidth=1.2, linestyle=(0, (4, 3)), label="warm-up ends")
        axes.set_xlim(0, 1.02 * max(curves[0].x))
        axes.set_ylim(0, 1.1 * max(max(curve.y) for curve in curves))
        axes.set_xlabel("round")
        axes.set_ylabel("resident memory")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(_round_bytes))
        _legend(axes, columns=2)

    return Drawing("memory-over-rounds", 3.2, draw)


def _label_bars(
    axes: Axes, labels: Sequence[str], lengths: Sequence[float], texts: Sequence[str], colors: Colors
) -> None:
    """Write a name before each horizontal bar and a text at its end, in place of an axis."""
    longest = max(lengths, default=0.0) or 1.0
    for place, (length, text) in enumerate(zip(lengths, texts, strict=True)):
        axes.text(length + 0.01 * longest, place, text, va="center")
    axes.set_yticks(range(len(labels)), labels, color=colors[INK])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    # Room for the text of the longest bar, which depends on how much width the labels leave.
    width = 72 * WIDTH - LETTER * max(map(len, labels))
    room = LETTER * max(map(len, texts))
    axes.set_xlim(0, longest * width / max(width - room, 0.2 * width))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)


def _plot_all(axes: Axes, curves: Sequence[Curve], labels: Sequence[str], colors: Colors) -> None:
    many = len(curves) > 2
    for number, (curve, label) in enumerate(zip(curves, labels, strict=True)):
        color = colors[SERIES[number % len(SERIES)]]
        dash = DASHES[(number + number // len(SERIES)) % len(DASHES)] if many else "-"
        if curve.low:
            axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.18, linewidth=0)
        few = len(curve.x) <= 60 and not curve.smooth  # marks of many points would merge into a band
        width = 1.8 if curve.smooth else 1.5 if few else 0.7
        axes.plot(
            curve.x, curve.y, color=color, linewidth=width, linestyle=dash, label=label,
            marker="o" if few or len(curve.x) == 1 else "",
        )  # fmt: skip


def _shortened(label: str, most: int) -> str:
    """Return the end of a long label, where names of layers and folders differ.

    Matplotlib leaves a label out of the legend that is empty or begins with an underscore, hence the space.
    """
    label = plain.printable(label)
    label = label if len(label) <= most else "…" + label[1 - most :]
    return f" {label}" if not label or label.startswith("_") else label


def _round_bytes(size: float, _: object) -> str:
    return re.sub(r"\.0+", "", units.format_bytes(size))


def _accuracy_axis(axes: Axes, columns: int = 3) -> None:
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], min_n_ticks=3))
    _legend(axes, columns=columns)


def _columns(labels: Sequence[str]) -> int:
    """Return the number of columns that makes a legend lowest within the figure's width."""

    def letters(columns: int) -> int:
        rows, more = divmod(len(labels), columns)
        starts = [column * rows + min(column, more) for column in range(columns + 1)]
        return sum(SAMPLE_LETTERS + max(map(len, labels[start:end])) for start, end in pairwise(starts))

    fitting = [columns for columns in range(1, min(3, len(labels)) + 1) if letters(columns) <= LEGEND_LETTERS]
    return min(fitting, key=lambda columns: math.ceil(len(labels) / columns), default=1)


def _height(labels: Sequence[str]) -> float:
    """Return the height in inches of a figure with a legend of these labels."""
    return 3.2 + 0.19 * (math.ceil(len(labels) / _columns(labels)) - 1)


def _legend(axes: Axes, columns: int) -> None:
    """Draw a legend above the axes, where no curve can cross it, and horizontal grid lines."""
    axes.grid(axis="y")
    length = 2.6 if len(axes.get_lines()) > 3 else None  # long enough to distinguish dashes
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0, borderpad=0.3, handlelength=length
    )
