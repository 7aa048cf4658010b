"""The colors of figures: readable on their pages, and apart for people who see colors in other ways."""

from itertools import combinations

import numpy as np
import pytest

from fedpress.simulations.report import drawings, figures
from fedpress.simulations.report.figures import DASHES, SERIES, Curve

# What people see who lack a kind of cone, in linear RGB (Machado, Oliveira, Fernandes 2009, severity 1).
SIGHT = {
    "common": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
PAGES = {"light": (drawings.LIGHT, ("#fbfbfa", "#ffffff")), "dark": (drawings.DARK, ("#131519", "#1b1e24"))}


def linear(color: str) -> np.ndarray:
    channels = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB; a distance of 2.3 is just noticeable side by side."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(matrix @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", SIGHT)
@pytest.mark.parametrize("page", PAGES)
def test_series_are_apart_for_everyone(page: str, kind: str) -> None:
    colors, _ = PAGES[page]
    seen = {role: lab(np.asarray(SIGHT[kind]) @ linear(colors[role])) for role in SERIES}
    near = {pair: float(np.linalg.norm(seen[pair[0]] - seen[pair[1]])) for pair in combinations(SERIES, 2)}
    assert min(near.values()) > 13, min(near, key=near.__getitem__)


@pytest.mark.parametrize("page", PAGES)
def test_series_stand_out_from_the_page(page: str) -> None:
    colors, backgrounds = PAGES[page]
    for role in SERIES:
        for background in backgrounds:
            light, dark = sorted(linear(one) @ [0.2126, 0.7152, 0.0722] for one in (colors[role], background))[::-1]
            assert (light + 0.05) / (dark + 0.05) >= 3, role  # WCAG 2.2, graphical objects


def test_thirty_curves_look_different_and_all_have_their_label() -> None:
    looks = {(SERIES[n % len(SERIES)], str(DASHES[(n + n // len(SERIES)) % len(DASHES)])) for n in range(30)}
    assert len(looks) == 30
    curves = [Curve(f"run {number}", [1, 10], [0.1, 0.01 * number]) for number in range(30)]
    svg = figures.accuracy_over_bytes(curves, 1e6).on_page()
    assert all(f"run {number}<" in svg for number in range(30))
