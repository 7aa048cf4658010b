"""The output of `fedpress pull`, on a terminal and in a file."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("grpc")

from fedpress.client.download.pull import Pulled  # noqa: E402
from fedpress.simulations.cli import pull_display  # noqa: E402


def shown(*, terminal: bool) -> str:
    """A download that fails once and then arrives."""
    text = StringIO()
    with pull_display.PullDisplay(Console(file=text, force_terminal=terminal, width=100)) as display:
        display.on_progress(400, 1000)
        display.on_wait("the link broke [x]", 1.25)
        display.on_progress(1000, 1000)
    return text.getvalue()


def test_a_file_has_a_line_for_each_failed_attempt_alone() -> None:
    assert shown(terminal=False) == "the link broke [x]; again in 1.2 s\n"


def test_a_terminal_has_a_bar_too() -> None:
    text = shown(terminal=True)
    assert "downloading" in text and "1.0/1.0 kB" in text and "the link broke [x]; again in 1.2 s" in text


@pytest.mark.parametrize(
    ("changed", "received", "text"),
    [
        (False, 0, "phone.fpb: version 3 is the newest, and it is here already"),
        (True, 2000, "phone.fpb: version 3, verified; 2.0 kB downloaded"),
        (True, 500, "phone.fpb: version 3, verified; 500 bytes downloaded of 2.0 kB, the rest was here"),
    ],
)
def test_the_last_line(changed: bool, received: int, text: str) -> None:
    pulled = Pulled(path=Path("phone.fpb"), version=3, size=2000, received=received, changed=changed)
    assert pull_display.summary(pulled) == text
