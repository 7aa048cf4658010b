"""`fedpress simulate`, `students` and `init`: a whole run, bad input, Ctrl-C, and students of a finished run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
import torch
import yaml
from tests.apps.command_line import COMMAND, ShortRun, fedpress, invoke, without

from fedpress.simulations.results import run_folder
from fedpress.simulations.runs import remake_students

Refused = Callable[[list[str]], str]

# Parts of equal size need no library for partitions, which takes two seconds to import.
QUICK = ["--set", "training.epochs=1", "--set", "partition.sizes=equal", "--set", "workers=1"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["simulate", "digitz"], "did you mean 'digits'?"),
        (["simulate", "--set", "density=0"], "density: got 0, expected 0 < density <= 1"),
        (["simulate", "--set", "density=2"], "density: got 2, expected 0 < density <= 1"),
        (["simulate", "--set", "trainig.epochs=2"], "trainig: unknown key"),
        (["simulate", "--set", "task.color=red"], "task.color: task 'digits' does not take it"),
        (["simulate", "--set", "task=nowhere:Task"], "there is no module 'nowhere'"),
        (["simulate", "fashion-mnist-100", "--set", "task.data_dir=nowhere"], "apt-get install dataset-fashion-mnist"),
        (["simulate", "text-books", "--set", "task.data_dir=nowhere"], "the folder nowhere does not exist"),
        (["simulate", "--set", "partition.kind=natural"], "partition.kind: 'natural', but the task has no groups"),
        (["simulate", "--set", "clients=2000"], "2000 clients cannot share 1037 training examples"),
        (["simulate", "--set", "network.trace=nowhere.csv"], "cannot read"),
        (["simulate", "--out", "full"], "full is not empty"),
        (["simulate", "--resume", "nowhere"], "there is no run folder nowhere"),
        (["simulate", "--resume", "full"], "full holds no scenario.yaml: it is not a run folder"),
        (["simulate", "digits", "--resume", "full"], "goes on as the run began; leave out SCENARIO, --set and --out"),
        (["simulate", "--json", "nowhere/figures.json"], "there is no folder nowhere"),
        (["simulate", "--engine", "ray"], "--engine ray: expected inline or flower"),
        (["simulate", "--ray-address", "auto"], "only Flower's engine runs on a cluster; add --engine flower"),
        (["simulate", "--engine", "flower", "--set", "network=wifi"], "has `network`, which needs the virtual time"),
        (["simulate", "--engine", "flower", "--ray-address", "127.0.0.1:1"], "there is no Ray cluster at 127.0.0.1:1"),
        (["simulate", "--nonsense"], "No such option"),
        (["students", "nowhere"], "there is no run folder nowhere"),
        (["init", "full/text"], "cannot write into full/text"),
        (["simulate", "--set", "students.signing_key=absent.pem"], "cannot read the key"),
        (["simulate", "--check", "--set", "clients=2000"], "2000 clients cannot share 1037 training examples"),
        (["simulate", "--check", "--out", "full"], "full is not empty"),
        (
            ["simulate", "--set", "students.tiers=[{name: a, parameters: 3}]"],
            "a student within 3 parameters is impossible",
        ),
    ],
)
def test_bad_input_is_explained_without_a_traceback(arguments: list[str], text: str, refused: Refused) -> None:
    assert text in refused(arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named_before_anything_begins(refused: Refused) -> None:
    error = refused(["simulate", "--set", "training.device=cuda"])
    assert "torch finds no CUDA device on this machine; use 'cpu'" in error


@pytest.mark.parametrize(
    ("module", "option", "extra"),
    [("ray", ("--engine", "flower"), "cluster"), ("tensorboard", ("--tensorboard",), "tensorboard")],
)
def test_the_extra_of_an_option_is_named_before_anything_begins(
    module: str, option: tuple[str, ...], extra: str, tmp_path: Path
) -> None:
    done = without(module, "simulate", *option, cwd=tmp_path)
    assert done.returncode == 2
    assert f"needs {module}, which is not installed: pip install " in done.stderr and f"[{extra}]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_check_prints_what_would_be_done_and_writes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("simulate", "digits", "--check", *QUICK, "--json", "forecast.json")
    assert done.exit_code == 0, done.stderr
    for text in ("global  105,226", "first order", "phone ", "the run folder", "nothing forbids this run"):
        assert text in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["forecast.json"]
    assert json.loads((tmp_path / "forecast.json").read_text())["models"][0]["trained"] == 105_226


IN_WORKERS_ONLY = """
from multiprocessing import parent_process
from fedpress.simulations.tasks.digits import Digits

class Elsewhere(Digits):
    def loss(self, outputs, targets):
        if parent_process() is not None:
            raise RuntimeError("not in this process")
        return super().loss(outputs, targets)
"""


@pytest.mark.long
def test_a_run_that_fails_says_why_and_has_an_exit_code(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(IN_WORKERS_ONLY)
    (tmp_path / "scenario.yaml").write_text(
        "task: task:Elsewhere\nclients: 2\nrounds: 9\nsampling: {clients_per_round: 2}\n"
        "partition: {sizes: equal}\nworkers: 1\n"
    )
    done = fedpress("simulate", "scenario.yaml", "--out", "run", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "error: the run has failed: 3 rounds in a row, 1 to 3, brought no usable reply: 6 refused (6 error); the first"
        " error, of node 1 in round 1: RuntimeError: not in this process" in done.stderr
    )
    assert "To try again from there: fedpress simulate --resume run" in done.stderr
    results = run_folder.load(tmp_path / "run")
    assert results.status == "failed" and f"the run has failed: {results.reason}" in done.stderr
    assert re.search(rf"^status +failed: {re.escape(results.reason)}$", done.stdout, re.M)
    assert "This run has failed:" in (tmp_path / "run" / "report.html").read_text()
    again = fedpress("simulate", "--resume", "run", cwd=tmp_path)
    assert again.returncode == 1 and "this run failed after round" in again.stdout


@pytest.mark.slow
def test_a_run_shows_each_round_and_ends_with_its_figures(short_run: ShortRun) -> None:
    shown = short_run.stdout
    assert re.search(r"^ +1/2 +\d+\.\d\d% +\d\.\d{4} +[\d.]+ \w+ +[\d.]+ \w+$", shown, re.M)
    assert re.search(r"^bytes up +[\d.]+ \w+, [\d.]+x less than dense", shown, re.M)
    assert re.search(r"^phone +[\d,]+ +[\d.]+ \w+( +[\d.]+%){4}$", shown, re.M)
    assert "report: run/report.html" in shown
    assert "Traceback" not in short_run.stderr


@pytest.mark.slow
def test_a_run_leaves_a_whole_folder(short_run: ShortRun) -> None:
    out, results = short_run.run, run_folder.load(short_run.run)
    assert results.status == "finished"
    assert [one.round for one in results.rounds] == [1, 2]
    assert json.loads((short_run.folder / "figures.json").read_text()) == json.loads((out / "results.json").read_text())
    assert yaml.safe_load((out / "scenario.yaml").read_text())["rounds"] == 2
    ledger = pandas.read_csv(out / "ledger.csv")
    by_direction = ledger.groupby("direction")["bytes"].sum()
    assert by_direction["up"] == results.totals.up_bytes
    assert by_direction["down"] == results.totals.down_bytes
    assert (out / "report.html").read_text().startswith("<!")
    assert (out / "run.log").is_file() and (out / "model.safetensors").is_file()


@pytest.mark.long
def test_running_the_saved_scenario_gives_the_same_model(short_run: ShortRun, tmp_path: Path) -> None:
    options = ["--set", "workers=2", "--set", "students.tiers=[]", "--out", tmp_path / "again"]
    done = fedpress("simulate", short_run.run, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert run_folder.load(tmp_path / "again").model.sha256 == run_folder.load(short_run.run).model.sha256


@pytest.mark.long
def test_students_are_made_anew_from_a_finished_run(short_run: ShortRun, tmp_path: Path) -> None:
    first, out = run_folder.load(short_run.run), tmp_path / "students"
    smaller = "students={tiers: [{name: watch, parameters: 0.05}], distill: {epochs: 1}, quantize: {bits: 4}}"
    command = ["students", short_run.run, "--out", out, "--set"]
    for change, expected in (
        ("rounds=7", "rounds cannot be changed for students of"),
        ("students.teachers=clients", "the client models of the rounds are gone"),
        ("students={tiers: []}", "there are no tiers, so no students"),
        ("students={tiers: [{name: a, parameters: 5}]}", "a student within 5 parameters is impossible"),
    ):
        failed = invoke(*command, change)
        assert failed.exit_code == 2 and expected in failed.stderr and not out.exists()

    def interrupt(result: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remake_students.remake(short_run.run, [smaller], out, on_student=interrupt)
    assert not out.exists()
    done = invoke(*command, smaller)
    assert done.exit_code == 0, done.output
    made = run_folder.load(out)
    assert (made.rounds, made.model, made.accuracy) == (first.rounds, first.model, first.accuracy)
    assert made.totals.down_bytes == first.totals.down_bytes - first.totals.bundle_bytes
    (student,) = made.students
    assert student.tier == "watch" and student.parameters < first.model.parameters / 20
    opened = invoke("inspect", next((out / "bundles" / "watch").iterdir()))
    assert opened.exit_code == 0 and student.sha256 in opened.stdout and "int4" in opened.stdout
    assert (out / "report.html").is_file()


def test_init_explains_what_comes_next_and_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = invoke("init", "study")
    assert made.exit_code == 0
    assert made.stdout.splitlines()[-1] == "run it: fedpress simulate study"
    again = invoke("init", "study")
    assert again.exit_code == 2
    assert "are left as they are" in again.stderr


def test_init_writes_the_keys_that_few_runs_need_if_asked(tmp_path: Path) -> None:
    for name, options in (("front", []), ("every", ["--all"])):
        assert invoke("init", str(tmp_path / name), *options).exit_code == 0
    front, every = ((tmp_path / name / "scenario.yaml").read_text() for name in ("front", "every"))
    assert "staleness_exponent" in every and "staleness_exponent" not in front


@pytest.mark.long
def test_ctrl_c_and_sigterm_leave_a_readable_folder_that_goes_on_and_says_so(tmp_path: Path) -> None:
    first = interrupted(tmp_path, [*QUICK, "--set", "rounds=500", "--out", "run"], "2/500", signal.SIGINT)
    done = len(run_folder.load(tmp_path / "run").rounds)
    again = interrupted(tmp_path, ["--resume", "run"], f"{done + 1}/500", signal.SIGTERM)
    assert "goes on after round" not in first
    assert re.search(rf"^goes on after round ({done - 1}|{done}) of 500\n +({done}|{done + 1})/500", again, re.M)
    assert len(run_folder.load(tmp_path / "run").rounds) > done


def interrupted(tmp_path: Path, arguments: list[str], line_to_wait_for: str, number: signal.Signals) -> str:
    """Send a signal once a line is there; check what is left behind, and return what was shown."""
    process = subprocess.Popen(
        [*COMMAND, "simulate", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where a shell runs tests behind
    )
    assert process.stdout is not None
    shown = []
    for line in process.stdout:
        shown.append(line)
        if line_to_wait_for in line:
            break
    os.killpg(process.pid, number)  # as a terminal or a batch system does: to the workers too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"interrupted after round \d+ of 500", err)
    assert "To continue: fedpress simulate --resume run" in err
    assert "Traceback" not in out + err
    results = run_folder.load(tmp_path / "run")
    assert results.status == "interrupted"
    assert len(results.rounds) >= 2
    assert (tmp_path / "run" / "report.html").is_file()
    for _ in range(50):
        left = subprocess.run(["ps", "-o", "stat=", "--sid", str(process.pid)], capture_output=True, text=True)
        if not left.stdout.strip("Z+< \n"):  # only what has ended and waits to be reaped
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"a worker outlives the run: {left.stdout}")
    return "".join(shown)
