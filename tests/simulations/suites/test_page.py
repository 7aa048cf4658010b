"""The report of a suite: means over seeds; cli/test_suites.py has whole pages."""

from pathlib import Path

import pytest

from fedpress.simulations.suites import page, suite
from fedpress.simulations.suites.page import MeanEstimate


def test_a_mean_needs_all_seeds() -> None:
    assert MeanEstimate.of([0.5]) == MeanEstimate(0.5, None)
    found = MeanEstimate.of([0.4, 0.5, 0.6])
    assert found is not None and found.mean == pytest.approx(0.5)
    assert found.half_width == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)  # Student's t, two degrees of freedom
    assert MeanEstimate.of([0.4, float("nan")]) is None and MeanEstimate.of([]) is None
    assert page.estimate(found) == "50.0 ± 24.8 %" and page.estimate(None) == "–"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.123, "0.12"), (9.94, "9.9"), (12.3, "12"), (1234.0, "1234")]
)
def test_durations_have_two_digits(value: float | None, text: str) -> None:
    assert page.milliseconds(value) == text


def test_time_and_energy_stand_together() -> None:
    assert page.spent((MeanEstimate(90.0, None), MeanEstimate(1234.5, None))) == "1.5 min, 1.23 kJ"
    assert page.spent(None) == "–"


def test_what_figures_do_not_say_stands_at_the_head_of_the_page_and_of_the_tables(tmp_path: Path) -> None:
    chosen = suite.load("digits")
    written = page.write(chosen, [], tmp_path, [("date", "today")], ["digits: models are <near> chance"])
    banner = '<p class="status">digits: models are &lt;near&gt; chance.</p>'
    assert (
        banner in written.read_text()
        and "status" not in page.write(chosen, [], tmp_path, []).read_text().split("</style>")[-1]
    )
    page.write(chosen, [], tmp_path, [("date", "today")], ["digits: models are near chance"])
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[2:5] == ["**digits: models are near chance.**", "", "* date: today"]
