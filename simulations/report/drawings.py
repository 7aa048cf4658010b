"""Figures that can be drawn in any colors: for pages on light or dark screens, or as files for print.

A `Drawing` draws with a color for each role. For a page the colors are placeholders, which are replaced by the page's
CSS variables in the finished SVG, so that one drawing serves light and dark screens.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO, StringIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpress.compression.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

WIDTH: Final = 5.6  # inches; 10-point text is then 1/40 of the figure's width
DOTS_PER_INCH: Final = 200  # of a PNG
MOST_ID: Final = 100  # letters

Colors = Mapping[str, str]  # role -> color
INK: Final = "ink"  # text
MUTED: Final = "muted"  # axes, secondary text
GRID: Final = "grid"
SERIES: Final = ("first", "second", "third", "fourth", "fifth", "sixth")
"""Curves, in their order. After Okabe and Ito's palette, darker or brighter so that each stands out from its page;
they stay apart for the three kinds of color blindness (tests/simulations/report/test_figures.py)."""
FIRST, SECOND = SERIES[:2]  # also bars, and the bar that stands for all
LIGHT: Final[Colors] = {
    INK: "#1b1d21", MUTED: "#5d636d", GRID: "#e4e6ea", "first": "#1f63c7", "second": "#b8500b", "third": "#00664a",
    "fourth": "#d4568f", "fifth": "#3a2f4f", "sixth": "#1b97c4",
}  # fmt: skip
"""Colors of light pages, and of figures as files."""
DARK: Final[Colors] = {
    INK: "#e8eaee", MUTED: "#a3a9b5", GRID: "#333842", "first": "#74a9ff", "second": "#f0a060", "third": "#1fa27c",
    "fourth": "#e07ac0", "fifth": "#efe9c0", "sixth": "#7fe0f5",
}  # fmt: skip
STAND_INS: Final[Colors] = {role: f"#0102{number:02x}" for number, role in enumerate(LIGHT, start=3)}
"""Placeholders of the roles' colors, which occur nowhere else in Matplotlib's SVG."""


def _style(colors: Colors) -> dict[RcKeyType, Any]:
    return {
        "svg.hashsalt": "fedpress",  # the same ids every time
        "svg.fonttype": "none",  # real text: it can be selected, read aloud and takes the page's font
        "text.parse_math": False,  # a layer's name may hold a dollar sign
        "font.size": 10,
        "text.color": colors[INK],
        "axes.edgecolor": colors[MUTED],
        "axes.labelcolor": colors[MUTED],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.color": colors[MUTED],
        "ytick.color": colors[MUTED],
        "grid.color": colors[GRID],
        "grid.linewidth": 0.8,
        "lines.linewidth": 1.8,
        "lines.markersize": 3.5,
        "legend.frameon": False,
        "legend.handlelength": 1.6,
        "legend.labelcolor": colors[INK],
        "patch.force_edgecolor": False,
    }


class Drawing(NamedTuple):
    """A figure that can be drawn in any colors.

    Attributes:
        name: What it is known by; `id` names its files, and its parts on a page.
        height: Inches.
        draw: Draws on axes, with a color for each role.
    """

    name: str
    height: float
    draw: Callable[[Axes, Colors], None]

    @property
    def id(self) -> str:
        """The name with nothing but letters, digits, - and _: a file's name, and a part of ids on a page.

        A tier may have any name, also one with a slash or a quotation mark. Different names differ here, too.
        """
        plain = re.sub(r"[^A-Za-z0-9_-]", "-", self.name)[:MOST_ID]
        return plain if plain == self.name else f"{plain}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"

    def on_page(self) -> str:
        """Return the figure as an SVG element for a page that defines the colors (`css_variables`)."""
        text = StringIO()
        self._save(text, "svg", STAND_INS, transparent=True)
        svg = text.getvalue()
        svg = svg[svg.index("<svg") :]  # an HTML page takes no XML declaration and no doctype
        # Matplotlib's style rule would apply to the whole page.
        svg = re.sub(r"<defs>\s*<style.*?</defs>", "", svg, count=1, flags=re.DOTALL)
        svg = re.sub(r'(\bid="|href="#|url\(#)', lambda found: f"{found[1]}{self.id}-", svg)
        for role, color in STAND_INS.items():
            svg = svg.replace(color, f"var(--{role})")
        return svg

    def svg(self) -> str:
        """Return the figure as an SVG file: on white, with real text."""
        text = StringIO()
        self._save(text, "svg", LIGHT)
        return text.getvalue()

    def png(self) -> bytes:
        """Return the figure as a PNG file, on white."""
        data = BytesIO()
        self._save(data, "png", LIGHT)
        return data.getvalue()

    def _save(self, to: IO[Any], kind: str, colors: Colors, transparent: bool = False) -> None:
        keys = ("Creator", "Date", "Format", "Type") if kind == "svg" else ("Software",)
        with matplotlib.rc_context(_style(colors)), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Glyph .* missing from font"
            )  # a name in any script; SVG takes the page's
            figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
            self.draw(figure.add_subplot(), colors)
            figure.savefig(
                to, format=kind, transparent=transparent, dpi=DOTS_PER_INCH if kind == "png" else "figure",
                metadata=dict.fromkeys(keys),
            )  # fmt: skip


def save(drawings: Iterable[Drawing], folder: Path) -> list[Path]:
    """Write each figure as SVG and PNG, and return the paths.

    Args:
        drawings: The figures.
        folder: Folder for the files, created if needed.

    Raises:
        OSError: The folder cannot be created or written into.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for drawing in drawings:
        for ending, data in ((".svg", drawing.svg().encode()), (".png", drawing.png())):
            written.append(folder / (drawing.id + ending))
            write_atomically(written[-1], data)
    return written


def css_variables(colors: Colors) -> str:
    """Return the colors as CSS declarations for a page with figures."""
    return " ".join(f"--{role}: {color};" for role, color in colors.items())
