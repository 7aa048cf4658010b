"""Shared parts of the commands: errors, targets of figures, tables."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest
import typer
from tests.apps.command_line import without

from fedpress.compression.errors import FedpressError
from fedpress.simulations.cli import common


class Damaged(FedpressError):
    """An error with an exit code of its own."""

    exit_code = 7


def test_an_error_of_fedpress_is_its_text_and_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as left, common.clear_errors("simulation"):
        raise Damaged("it is damaged")
    assert left.value.exit_code == 7 and capsys.readouterr().err == "error: it is damaged\n"


def test_sigterm_is_as_ctrl_c_and_only_within(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as left, common.clear_errors("simulation"):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert left.value.exit_code == common.INTERRUPTED and capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_of_programming_keeps_its_traceback() -> None:
    with pytest.raises(ModuleNotFoundError), common.clear_errors("simulation"):
        import fedpress.nowhere  # type: ignore[import-not-found]  # noqa: F401
    with pytest.raises(ZeroDivisionError), common.clear_errors("simulation"):
        math.fmod(1, 0) if False else 1 / 0


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    done = without("torch", "simulate", cwd=tmp_path)
    assert done.returncode == 2
    assert "needs torch, which is not installed: pip install " in done.stderr and "[simulation]'" in done.stderr


@pytest.mark.parametrize(
    ("path", "text"), [("none/figures.json", "there is no folder"), ("", "this is a folder; give the name of a file")]
)
def test_a_target_is_checked_before_the_work(
    path: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ({"json_file": tmp_path / path}, {"plot": tmp_path / path}):
        with pytest.raises(typer.Exit) as left, common.clear_errors("simulation", **arguments):
            pytest.fail("the work began")
        assert left.value.exit_code == 2 and text in capsys.readouterr().err


def test_figures_are_written_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common.write_json(None, {"a": 1})
    common.write_json(tmp_path / "figures.json", {"a": 1})
    assert capsys.readouterr().out == f"JSON: {tmp_path}/figures.json\n"
    assert json.loads((tmp_path / "figures.json").read_text()) == {"a": 1}


def test_a_table_is_not_wrapped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    common.show_rows(("name", "bytes"), [("x" * 50, "900")])
    assert capsys.readouterr().out.splitlines()[1] == "x" * 50 + "    900"


def test_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert common.parse_seeds("1-3") == [1, 2, 3]
    with pytest.raises(typer.Exit):
        common.parse_seeds("3-x")
    assert capsys.readouterr().err.startswith("error: --seeds: got '3-x'")
