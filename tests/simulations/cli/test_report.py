"""`fedpress report`: the page of one run, made again; a comparison is in `test_comparison_page`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.apps.command_line import ShortRun, invoke

Refused = Callable[[list[str]], str]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["report", "nowhere"], "there is no run folder nowhere"),
        (["report", "full"], "holds no results.json"),
        (["report", "full", "--figures", "full/text"], "--figures full/text: expected a folder, and this is a file"),
    ],
)
def test_bad_input_is_explained_without_a_traceback(arguments: list[str], text: str, refused: Refused) -> None:
    assert text in refused(arguments)


@pytest.mark.slow
def test_the_page_of_a_run_is_the_same_when_made_again(short_run: ShortRun, tmp_path: Path) -> None:
    run = shutil.copytree(short_run.run, tmp_path / "run")
    (run / "report.html").unlink()
    done = invoke("report", run)
    assert (done.exit_code, done.stdout) == (0, f"{run}/report.html\n")
    assert (run / "report.html").read_bytes() == (short_run.run / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--budget", "0", "expected megabytes above 0"), ("--budget", "nan", "above 0"), ("--target", "60", "up to 1")],
)
def test_a_question_that_makes_no_sense_is_refused(option: str, value: str, said: str, tmp_path: Path) -> None:
    told = invoke("report", tmp_path / "a", tmp_path / "b", option, value)
    assert told.exit_code == 2 and said in told.stderr
