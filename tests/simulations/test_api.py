"""Whole runs from Python, and in a notebook."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest

import fedpress
from fedpress.compression.ledger import Ledger
from fedpress.simulations.report.run_result import RunResult
from fedpress.simulations.runs import workload

KEYS = {"rounds": 3, "partition.alpha": 0.1, "students": {"tiers": []}, "workers": 2}
"""A short run: a nested key with a dot, a section as a dict."""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return fedpress.simulate("digits", out=tmp_path_factory.mktemp("runs") / "digits", progress=False, **KEYS)


def test_keys_are_those_of_the_scenario(result: RunResult) -> None:
    scenario = result.results.scenario
    assert (scenario["rounds"], scenario["partition"]["alpha"], scenario["students"]["tiers"]) == (3, 0.1, [])
    assert scenario["partition"]["kind"] == "dirichlet"


def test_frames_hold_the_figures(result: RunResult) -> None:
    assert list(result.rounds.index) == [1, 2, 3]
    assert result.accuracy == pytest.approx(result.rounds["accuracy"].mean())
    assert result.rounds["up_bytes"].sum() == result.results.totals.up_bytes
    ledger = Ledger.load(result.folder / "ledger.csv")
    assert int(result.ledger["bytes"].sum()) == ledger.total()
    assert result.layers["size"].sum() == result.results.model.parameters
    assert list(result.students.columns)[:2] == ["tier", "version"] and result.students.empty
    assert result.tiers.empty
    assert all(isinstance(frame, pd.DataFrame) for frame in (result.rounds, result.ledger, result.layers))


def test_the_model_loads_into_the_tasks_module(result: RunResult) -> None:
    from fedpress.simulations.scenario.scenario import load

    module = workload.Workload(load(result.folder)).fresh_model()
    before = next(module.parameters()).detach().clone()
    module.load_state_dict(result.model)
    assert not np.array_equal(before, next(module.parameters()).detach())


def test_load_run_is_the_same_result(result: RunResult) -> None:
    again = fedpress.load_run(result.folder)
    assert again.results == result.results and repr(again) == repr(result)


def test_it_says_itself_as_text_and_html(result: RunResult) -> None:
    assert "accuracy" in repr(result) and str(result.folder) in repr(result)
    html = result._repr_html_()
    assert html.count("<svg") == 2 and "<table>" in html
    first, second = html, result._repr_html_()  # shown twice on a page: no id twice
    ids = [set(part.split('"')[0] for part in text.split('id="')[1:]) for text in (first, second)]
    assert ids[0] and not ids[0] & ids[1]


def test_the_report_is_there_and_can_go_elsewhere(result: RunResult, tmp_path: Path) -> None:
    assert (result.folder / "report.html").is_file()
    assert result.report(tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!")
    assert {drawing.name for drawing in result.drawings()} >= {"accuracy-over-rounds", "bytes-by-kind"}


def test_an_unknown_key_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(fedpress.FedpressError, match="partition.alhpa"):
        fedpress.simulate("digits", out=tmp_path / "run", **{"partition.alhpa": 0.1})
    with pytest.raises(TypeError, match="rounds: expected a number"):
        fedpress.simulate("digits", out=tmp_path / "run", rounds=float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_resume_takes_nothing_else(result: RunResult) -> None:
    with pytest.raises(ValueError, match="leave out"):
        fedpress.simulate(resume=result.folder, rounds=4)
    with pytest.raises(fedpress.FedpressError, match="is finished"):
        fedpress.simulate(resume=result.folder)


@pytest.mark.long
def test_a_run_that_is_stopped_goes_on_to_the_same_end(result: RunResult, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def interrupt() -> None:
        while not (folder / "results.json").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt) as stopped:
            fedpress.simulate("digits", out=folder, progress=False, **{**KEYS, "rounds": 15})
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.__notes__ == [f"to go on: fedpress.simulate(resume={str(folder)!r})"]
    assert fedpress.load_run(folder).results.status == "interrupted"
    ended = fedpress.simulate(resume=folder, progress=False)
    assert ended.results.status == "finished" and len(ended.rounds) == 15
    assert ended.rounds["accuracy"][:3].equals(result.rounds["accuracy"])


@pytest.mark.long
def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    """Workers would import the script, and start anew."""
    script = tmp_path / "five.py"
    script.write_text(
        "import fedpress\n"
        f"result = fedpress.simulate('digits', out='run', progress=False, **{KEYS!r})\n"
        "print(result.accuracy)\n"
        "open('curve.svg', 'w').write(result.drawings()[0].svg())\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1
    assert "<svg" in (tmp_path / "curve.svg").read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # those of Jupyter's own packages
def test_a_notebook_shows_table_and_curve(tmp_path: Path) -> None:
    cells = [
        "import fedpress",
        f"result = fedpress.simulate('digits', out='run', **{KEYS!r})",
        "result",
        "result.rounds[['accuracy', 'up_bytes']]",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=os.environ | {"JUPYTER_PLATFORM_DIRS": "1", "IPYTHONDIR": str(tmp_path / "ipython")})
    bar, shown, frame = (cell.outputs for cell in notebook.cells[1:])
    assert [output.get("text", output.output_type) for output in bar] == [
        "display_data"
    ]  # one that is replaced, no line for each round
    assert "3/3" in bar[0].data["text/html"]
    html = shown[0].data["text/html"]
    assert "<th style='text-align: left'>accuracy</th>" in html and html.count("<svg") == 2
    assert "accuracy" in shown[0].data["text/plain"]
    assert "up_bytes" in frame[0].data["text/html"]
