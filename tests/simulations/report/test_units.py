"""Numbers with their units."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.simulations.report import units


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_600, "1.00 MB"),
        (2_330_000, "2.33 MB"),
        (5e9, "5.00 GB"),
        (1.5e13, "15000 GB"),
    ],
)
def test_sizes_have_three_figures(size: float, text: str) -> None:
    assert units.format_bytes(size) == text


@given(st.floats(1e-6, 1e9))
def test_an_energy_is_read_back_within_its_three_figures(joules: float) -> None:
    number, unit = units.format_joules(joules).split()
    assert float(number) * {"mJ": 1e-3, "J": 1, "kJ": 1e3, "MJ": 1e6}[unit] == pytest.approx(joules, rel=5e-3)
