"""The progress of a run, on a terminal and in a file."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from fedpress.compression.models.step import SearchProgress
from fedpress.simulations.cli import progress
from fedpress.simulations.results.records import RoundResult, StudentResult, TierRound
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.scenario import scenario


def a_round(number: int, accuracy: float | None = 0.5) -> RoundResult:
    loss = None if accuracy is None else 1.25
    return RoundResult(
        round=number, accuracy=accuracy, loss=loss, up_bytes=2_000, down_bytes=30_000, replies=3, refused=1,
        reasons={"late": 1}, tiers={"phone": TierRound(accuracy=0.25, loss=None, up_bytes=1, down_bytes=2, replies=1)},
    )  # fmt: skip


STUDENT = StudentResult(
    tier="phone", version=1, parameters=12_345, bundle_bytes=16_000, accuracy=0.5, teacher_accuracy=0.75,
    student_accuracy=0.5, quantized_accuracy=0.5, sha256="ab" * 32,
)  # fmt: skip


def shown(folder: Path, *, terminal: bool, students: bool = True) -> str:
    """A run of three rounds that goes on after the first."""
    text = StringIO()
    with progress.Display(Console(file=text, force_terminal=terminal, width=160), 3) as display:
        assert display.folder is None
        display.on_start(scenario.load("digits", ["rounds=3"]), RunFolder(folder))
        display.on_resume([a_round(1)])
        display.on_round(a_round(2, None))
        display.on_round(a_round(3))
        if students:
            display.on_search("phone", SearchProgress(0, 4, "scoring"))
            display.on_search("phone", SearchProgress(2, 4, "distilling"))
            display.on_student(STUDENT)
    assert display.folder is not None and display.folder.path == folder
    return text.getvalue()


def test_a_file_has_a_line_for_each_step(tmp_path: Path) -> None:
    head, columns, resumed, second, third, search, student = shown(tmp_path, terminal=False).splitlines()
    assert head.startswith("digits: task digits, 20 clients, 10 a round, density 0.01, seed ") and str(tmp_path) in head
    assert columns.split() == ["round", "accuracy", "loss", "bytes", "up", "bytes", "down"]
    assert resumed == "goes on after round 1 of 3"
    assert second.split() == "2/3 - - 2.0 kB 30.0 kB phone 25.00% 1 refused: 1 late".split()
    assert third.split()[:3] == ["3/3", "50.00%", "1.2500"]
    assert search == "student phone: searching for the best architecture within its budget"
    assert student.startswith("student phone: 12,345 parameters, 16.0 kB") and "50.00% (teacher 75.00%)" in student


def test_a_terminal_has_a_bar_with_the_sums_of_all_rounds_too(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=True, students=False)
    assert "6.0 kB up, 90.0 kB down" in text and "3/3" in text
    assert "student phone, 50%: distilling" in shown(tmp_path, terminal=True)


def test_the_accuracy_of_an_onnx_graph_is_shown_beside_that_of_its_student() -> None:
    text = StringIO()
    with progress.Display(Console(file=text, width=160), 1) as display:
        display.on_student(STUDENT.model_copy(update={"onnx_accuracy": 0.4321}))
    assert "accuracy 50.00%, as ONNX 43.21% (teacher 75.00%)" in text.getvalue()
