"""A drawing takes the colors of its page, and is a file by itself."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from fedpress.simulations.report import drawings, figures
from fedpress.simulations.report.figures import Curve


def test_pages_and_files_define_the_same_roles() -> None:
    assert drawings.LIGHT.keys() == drawings.DARK.keys() == drawings.STAND_INS.keys()
    assert len(set(drawings.STAND_INS.values())) == len(drawings.STAND_INS)


def test_a_page_that_a_figure_stands_on_gives_it_its_colors() -> None:
    curves = [Curve("one", [1, 2], [0.1, 0.2], low=[0.05, 0.1], high=[0.2, 0.3])]
    drawing = figures.accuracy_over_rounds(curves)
    assert "#0102" not in drawing.on_page() and "var(--first)" in drawing.on_page()
    assert "var(" not in drawing.svg() and drawings.LIGHT["first"] in drawing.svg()
    assert drawing.png() == drawing.png() and drawing.svg() == drawing.svg()


def test_two_drawings_on_a_page_share_no_id() -> None:
    curves = [Curve("one", [1, 2], [0.1, 0.2])]
    pages = [figures.accuracy_over_rounds(curves, name).on_page() for name in ("a", "b")]
    first, second = (set(re.findall(r'\bid="([^"]*)"', page)) for page in pages)
    assert first and not first & second
    for page, ids in zip(pages, (first, second), strict=True):
        assert (
            set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page))
            and {"".join(pair) for pair in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page)} <= ids
        )


def test_files_are_written_for_print(tmp_path: Path) -> None:
    drawing = figures.accuracy_over_rounds([Curve("a $x_1$", [1, 2], [0.1, 0.2])])
    svg, png = drawings.save([drawing], tmp_path / "new")
    assert ElementTree.parse(svg).getroot().tag.endswith("svg") and png.read_bytes().startswith(b"\x89PNG\r\n")
    assert "a $x_1$" in svg.read_text() and "var(" not in svg.read_text()
