"""The figures of a report, as SVG whose colours are CSS variables of the page that holds it.

Matplotlib draws with stand-in colours, one for each role; the finished SVG names the page's variables in their
place. So one drawing reads well on a light and on a dark page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

WIDTH: Final = 5.6  # inches; 10-point text is then 1/40 of the figure's width
LETTER: Final = 6.3  # points that a letter of 10-point text takes, rather too many than too few
MOST_LETTERS: Final = 30  # of a bar's label
# Stand-in -> CSS variable. The stand-ins occur nowhere else in what Matplotlib writes.
INK: Final = "#010203"  # text
MUTED: Final = "#010204"  # axes, secondary text
GRID: Final = "#010205"
FIRST: Final = "#010206"  # the first series, and bars
SECOND: Final = "#010207"
VARIABLES: Final = {INK: "--ink", MUTED: "--muted", GRID: "--grid", FIRST: "--first", SECOND: "--second"}
LIGHT: Final = {INK: "#1b1d21", MUTED: "#5d636d", GRID: "#e4e6ea", FIRST: "#1f63c7", SECOND: "#b8500b"}
"""The page's colours on a light screen, for a figure that is a file of its own."""
STYLE: Final[dict[RcKeyType, Any]] = {
    "svg.hashsalt": "fedpress",  # the same ids every time
    "svg.fonttype": "none",  # real text: it can be selected, read aloud and takes the page's font
    "text.parse_math": False,  # a layer's name may hold a dollar sign
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "patch.force_edgecolor": False,
}


class Curve(NamedTuple):
    """One line of a figure."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


class Bar(NamedTuple):
    """One bar: its name, its length, the text at its end, and whether it stands for all others together."""

    label: str
    length: float
    text: str
    whole: bool = False


def format_bytes(size: float) -> str:
    """A size in decimal units, three figures: `1.23 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    digits = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {unit}"


def accuracy_over_rounds(single: Curve, mean: Curve) -> str:
    """Accuracy (fractions) of the rounds that were evaluated, and its running mean."""

    def draw(axes: Axes) -> None:
        _plot(axes, single, FIRST)
        axes.plot(mean.x, mean.y, color=SECOND, label=mean.label)
        axes.set_xlim(0, 1.02 * max(single.x))
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        _accuracy_axis(axes)

    return _svg("rounds", 3.2, draw)


def accuracy_over_bytes(curves: Sequence[Curve], dense: float | None) -> str:
    """Accuracy over bytes sent so far (log scale), and what dense messages would have cost as a vertical line."""

    def draw(axes: Axes) -> None:
        for curve, color in zip(curves, (FIRST, SECOND), strict=False):
            _plot(axes, curve, color)
        axes.set_xscale("log")
        if dense is not None:
            label = f"dense, up: {format_bytes(dense)}"
            axes.axvline(dense, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label=label)
        axes.set_xlabel("bytes so far")
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: re.sub(r"\.0+", "", format_bytes(value))))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _accuracy_axis(axes)

    return _svg("bytes", 3.2, draw)


def bars(name: str, items: Sequence[Bar]) -> str:
    """Horizontal bars in the given order, each with its text at its end."""
    labels = [_shortened(item.label) for item in items]

    def draw(axes: Axes) -> None:
        places = range(len(items))
        colors = [SECOND if item.whole else FIRST for item in items]
        axes.barh(places, [item.length for item in items], height=0.62, color=colors)
        longest = max((item.length for item in items), default=0.0) or 1.0
        for place, item in zip(places, items, strict=True):
            axes.text(item.length + 0.01 * longest, place, item.text, va="center")
        axes.set_yticks(places, labels, color=INK)
        axes.set_ylim(len(items) - 0.4, -0.6)
        # Room for the text of the longest bar, which depends on how much width the labels leave.
        width = 72 * WIDTH - LETTER * max(map(len, labels))
        text = LETTER * max(len(item.text) for item in items)
        axes.set_xlim(0, longest * width / max(width - text, 0.2 * width))
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)

    return _svg(name, 0.2 + 0.26 * len(items), draw)


class Tried(NamedTuple):
    """An architecture that was looked at; `uniform`: all its layers are made smaller alike."""

    size: float
    accuracy: float
    uniform: bool = False
    chosen: bool = False


def pareto(tried: Sequence[Tried], xlabel: str, standalone: bool = False) -> str:
    """Accuracy (fractions) over size of what a search has distilled, and the front: no smaller one is better.

    Args:
        tried: at least one.
        xlabel: what a size is of.
        standalone: as an SVG file of its own, else for a page that defines the colours.
    """
    front: list[Tried] = []
    for one in sorted(tried, key=lambda one: (one.size, -one.accuracy)):
        if not front or one.accuracy > front[-1].accuracy:
            front.append(one)

    def draw(axes: Axes) -> None:
        sizes, accuracies = [one.size for one in front], [one.accuracy for one in front]
        last = max(one.size for one in tried)
        axes.step(
            [*sizes, last], [*accuracies, accuracies[-1]], where="post", color=MUTED, linewidth=1.2, label="front"
        )
        for label, marker, color, members in (
            ("distilled in the search", "o", FIRST, [one for one in tried if not one.uniform]),
            ("all layers alike", "s", SECOND, [one for one in tried if one.uniform]),
        ):
            if members:
                axes.plot(
                    [one.size for one in members], [one.accuracy for one in members], color=color, marker=marker,
                    linestyle="", markersize=4.5, label=label,
                )  # fmt: skip
        chosen = [one for one in tried if one.chosen]
        axes.plot(
            [one.size for one in chosen], [one.accuracy for one in chosen], marker="o", markersize=11, linestyle="",
            markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.2, label="chosen",
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

    svg = _svg("pareto", 3.4, draw)
    return _standalone(svg) if standalone else svg


class Cut(NamedTuple):
    """A step of a pruning: what part of the parameters was removed, and whether that was kept or undone."""

    removed: float
    accuracy: float
    taken: bool


def cliff(cuts: Sequence[Cut], name: str) -> str:
    """Accuracy (fractions) over the part that was removed: the way that was taken, where it stopped, what was undone.

    Args:
        cuts: in their order, at least one of them taken.
        name: keeps the figure's ids apart from those of others of its kind.
    """
    taken, undone = [cut for cut in cuts if cut.taken], [cut for cut in cuts if not cut.taken]

    def draw(axes: Axes) -> None:
        axes.plot(
            [cut.removed for cut in taken], [cut.accuracy for cut in taken], color=FIRST, marker="o", markersize=4.5,
            linewidth=1.5, label="taken",
        )  # fmt: skip
        if undone:
            axes.plot(
                [cut.removed for cut in undone], [cut.accuracy for cut in undone], color=SECOND, marker="x",
                markersize=7, linestyle="", label="undone",
            )  # fmt: skip
        axes.plot(
            [taken[-1].removed], [taken[-1].accuracy], marker="o", markersize=11, linestyle="", markerfacecolor="none",
            markeredgecolor=INK, markeredgewidth=1.2, label=f"stopped here: {taken[-1].removed:.1%} removed",
        )  # fmt: skip
        axes.set_xlabel("parameters removed")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        _accuracy_axis(axes)
        axes.margins(x=0.05, y=0.12)

    return _svg(f"cliff-{name}", 3.0, draw)


def memory_over_rounds(curves: Sequence[Curve], begin: int) -> str:
    """Resident bytes of a server (first curve) and its workers over the rounds, as an SVG file of its own.

    Args:
        curves: one for each process.
        begin: the round where the warm-up ends; a vertical line marks it.
    """

    def draw(axes: Axes) -> None:
        axes.plot(curves[0].x, curves[0].y, color=FIRST, linewidth=1.2, label=curves[0].label)
        for number, curve in enumerate(curves[1:]):  # workers are alike: dashes let the others show through
            axes.plot(curve.x, curve.y, color=SECOND, linewidth=1.2, linestyle=(6 * number, (6, 5)), label=curve.label)
        axes.axvline(begin, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="warm-up ends")
        axes.set_xlim(0, 1.02 * max(curves[0].x))
        axes.set_ylim(0, 1.1 * max(max(curve.y) for curve in curves))
        axes.set_xlabel("round")
        axes.set_ylabel("resident memory")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: re.sub(r"\.0+", "", format_bytes(value))))
        _legend(axes, columns=2)

    return _standalone(_svg("memory", 3.2, draw))


def _plot(axes: Axes, curve: Curve, color: str) -> None:
    """Draws a curve so that few points are seen as points and many do not become a band."""
    few = len(curve.x) <= 60
    axes.plot(
        curve.x, curve.y, color=color, linewidth=1.5 if few else 0.7, marker="o" if few else "", label=curve.label
    )


def _shortened(label: str) -> str:
    """The end of a long label: names of layers differ there."""
    return label if len(label) <= MOST_LETTERS else "…" + label[1 - MOST_LETTERS :]


def _accuracy_axis(axes: Axes, columns: int = 3) -> None:
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], min_n_ticks=3))
    _legend(axes, columns=columns)


def _legend(axes: Axes, columns: int) -> None:
    """A legend above the axes, where no curve can run through it, and lines to read heights by."""
    axes.grid(axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0, borderpad=0.3, labelcolor=INK)


def _svg(name: str, height: float, draw: Callable[[Axes], None]) -> str:
    """Draws one figure; `name` keeps its ids apart from those of the page's other figures."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.add_subplot())
        text = StringIO()
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]  # an HTML page takes no XML declaration and no doctype
    svg = re.sub(
        r"<defs>\s*<style.*?</defs>", "", svg, count=1, flags=re.DOTALL
    )  # its rule would hold for the whole page
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg


def _standalone(svg: str) -> str:
    """The figure with a background and the colours of a light page, for where there is no page."""
    for color, variable in VARIABLES.items():
        svg = svg.replace(f"var({variable})", LIGHT[color])
    opening, rest = svg.split(">", 1)
    return f'{opening}><rect width="100%" height="100%" fill="#ffffff"/>{rest}'
