"""The command line as a user meets it: help, errors with exit code 2, a whole run, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
import torch
import yaml
from typer.testing import CliRunner

from fedpress.compression.encoders import encoder, selection
from fedpress.compression.encoders.encoder import SideInfo
from fedpress.compression.tensors import layout as layouts
from fedpress.compression.wire import values
from fedpress.simulations.__main__ import main
from fedpress.simulations.results import run_folder
from fedpress.simulations.runs import remake_students

COMMAND = [sys.executable, "-m", "fedpress.simulations"]
# Parts of equal size need no library for partitions, which takes two seconds to import.
QUICK = ["--set", "training.epochs=1", "--set", "partition.sizes=equal", "--set", "workers=1"]
SHORT = ["--set", "rounds=2", "--set", "students.distill.epochs=2", "--set", "workers=1"]


def fedpress(*arguments: object, cwd: Path, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "100"},
        **more,  # type: ignore[call-overload]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A short run of what `fedpress init` writes, which several tests look at."""
    folder = tmp_path_factory.mktemp("main")
    assert fedpress("init", "study", cwd=folder).returncode == 0
    done = fedpress("simulate", "study", *SHORT, "--out", "run", "--json", "figures.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "simulate",
        "students",
        "report",
        "inspect",
        "probe",
        "init",
        "hub",
        "hub-token",
        "pull",
        "run",
        "bench engine",
        "bench paired",
        "bench codec",
        "bench reuse",
        "bench communication",
        "bench wire",
        "bench warm",
        "bench memory",
        "bench scale",
        "bench hub",
        "server",
        "client",
        "keys init",
        "keys renew",
        "keys node",
        "keys certificate",
        "keys register",
        "keys revoke",
        "keys list",
    ],  # fmt: skip
)
def test_every_command_has_a_help_page_with_an_example(command):
    done = CliRunner().invoke(main, [*command.split(), "--help"])
    assert done.exit_code == 0
    assert re.search(rf"Examples?:\n +fedpress {command}", done.stdout)
    assert "\\[" not in done.stdout  # typer's escaping of brackets, seen where it shows defaults


def test_help_lists_every_command_in_whole_sentences():
    done = CliRunner().invoke(main, ["--help"])
    listed = re.findall(r"^  ([\w-]+)  +(.*)$", done.stdout.partition("Commands:")[2], re.M)
    assert " ".join(name for name, _ in listed) == (
        "simulate students report inspect probe init server client hub hub-token pull run bench keys"
    )
    assert all(text.endswith(".") and "..." not in text for _, text in listed)


def test_help_and_version_import_nothing_heavy(tmp_path):
    code = (
        "import sys\nfrom fedpress.simulations.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'flwr', 'sklearn', 'pandas', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert re.fullmatch(r"fedpress \d+\.\d+\.\d+\n", fedpress("--version", cwd=tmp_path).stdout)


# --- bad input -------------------------------------------------------------------------------------------------------


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
        (["report", "nowhere"], "there is no run folder nowhere"),
        (["report", "full"], "holds no results.json"),
        (["inspect", "nowhere"], "there is no file or folder nowhere"),
        (["inspect", "full"], "holds no results.json"),
        (["inspect", "full/text"], "neither a payload nor a bundle nor a run folder"),
        (["probe", "digitz"], "did you mean 'digits'?"),
        (["probe", "--threads", "0"], "got 0, expected at least 1"),
        (["probe", "--json", "nowhere/phone.json"], "there is no folder nowhere"),
        (["init", "full/text"], "cannot write into full/text"),
        (["bench", "engine", "--workers", "0"], "got 0, expected at least 1"),
        (["bench", "codec", "--density", "2"], "density 2.0 is out of range; expected 0 < density <= 1"),
        (["bench", "codec", "--values", "int9"], "'int9' is not one of float32"),
        (["bench", "codec", "--data", "cluster"], "data is 'cluster': scenario 'cluster': there is no such file"),
        (["bench", "codec", "--data", "none.npy"], "expected one of clustered, uniform"),
        (["bench", "reuse", "nowhere"], "there is no run folder nowhere"),
        (["bench", "scale", "--clients", "10,x"], "--clients 10,x: expected numbers from 1 on, such as 100,1000"),
        (["bench", "scale", "--rounds", "2"], "got 2 rounds, expected at least 3"),
        (["bench", "scale", "--clients", "3"], "per_round"),
        (["bench", "paired", "--seeds", "1-x"], "expected a range such as 1-10 or numbers such as 3,5,8"),
        (["bench", "paired", "--seeds", "1-3,2"], "expected at least one seed, and each once"),
        (["bench", "paired", "--seeds", "3-1"], "expected at least one seed"),
        (["bench", "paired", "--baseline", "rounds=3"], "rounds differs"),
        (["bench", "memory", "--plot", "nowhere/memory.svg"], "--plot nowhere/memory.svg: there is no folder nowhere"),
        (["bench", "communication", "--seeds", "0-x"], "expected a range such as 1-10 or numbers such as 3,5,8"),
        (["bench", "communication", "--only", "dcg"], "did you mean 'dgc'?"),
        (["bench", "communication", "--set", "density=0"], "density: got 0, expected 0 < density <= 1"),
    ],
)
def test_bad_input_is_explained_without_a_traceback(arguments, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "text").write_text("hello")
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)  # not an exception that Python would show with a traceback
    assert text in " ".join(done.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["full"]  # no half-made run folder is left behind


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_before_anything_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["simulate", "--set", "training.device=cuda"])
    assert done.exit_code == 2 and "torch finds no CUDA device on this machine; use 'cpu'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path):
    # The base installation, as far as imports go: torch cannot be found.
    code = "import sys; sys.modules['torch'] = None\nfrom fedpress.simulations.__main__ import main\nmain(['simulate'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "needs torch, which is not installed: pip install 'fedpress[simulation]'" in done.stderr


def test_the_extra_for_flowers_engine_is_named_before_anything_begins(tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None\nfrom fedpress.simulations.__main__ import main\n"
        "main(['simulate', '--engine', 'flower'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "needs ray, which is not installed: pip install 'fedpress[cluster]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_extra_for_event_files_is_named_before_anything_begins(tmp_path):
    code = (
        "import sys; sys.modules['tensorboard'] = None\nfrom fedpress.simulations.__main__ import main\n"
        "main(['simulate', '--tensorboard'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "needs tensorboard, which is not installed: pip install 'fedpress[tensorboard]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_shows_each_round_and_ends_with_its_figures(run):
    _, done = run
    assert re.search(r"^ +1/2 +\d+\.\d\d% +\d\.\d{4} +[\d.]+ \w+ +[\d.]+ \w+$", done.stdout, re.M)
    assert re.search(r"^bytes up +[\d.]+ \w+, [\d.]+x less than dense", done.stdout, re.M)
    assert re.search(r"^phone +[\d,]+ +[\d.]+ \w+( +[\d.]+%){4}$", done.stdout, re.M)
    assert "report: run/report.html" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_leaves_a_whole_folder(run):
    folder, _ = run
    out = folder / "run"
    results = run_folder.load(out)
    assert results.status == "finished"
    assert [one.round for one in results.rounds] == [1, 2]
    assert json.loads((folder / "figures.json").read_text()) == json.loads((out / "results.json").read_text())
    assert yaml.safe_load((out / "scenario.yaml").read_text())["rounds"] == 2
    ledger = pandas.read_csv(out / "ledger.csv")
    by_direction = ledger.groupby("direction")["bytes"].sum()
    assert by_direction["up"] == results.totals.up_bytes
    assert by_direction["down"] == results.totals.down_bytes
    assert (out / "report.html").read_text().startswith("<!")
    assert (out / "run.log").is_file() and (out / "model.safetensors").is_file()


@pytest.mark.slow
def test_running_the_saved_scenario_gives_the_same_model(run):
    folder, _ = run
    done = fedpress("simulate", "run", "--set", "workers=2", "--out", "again", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert run_folder.load(folder / "again").model.sha256 == run_folder.load(folder / "run").model.sha256


@pytest.mark.slow
def test_students_are_made_anew_from_a_finished_run(run):
    folder, _ = run
    first, out = run_folder.load(folder / "run"), folder / "students"
    smaller = "students={tiers: [{name: watch, parameters: 0.05}], distill: {epochs: 1}, quantize: {bits: 4}}"
    command = ["students", str(folder / "run"), "--out", str(out), "--set"]
    for change, expected in (
        ("rounds=7", "rounds cannot be changed for students of"),
        ("students.teachers=clients", "the client models of the rounds are gone"),
        ("students={tiers: []}", "there are no tiers, so no students"),
        ("students={tiers: [{name: a, parameters: 5}]}", "a student within 5 parameters is impossible"),
    ):
        refused = CliRunner().invoke(main, [*command, change])
        assert refused.exit_code == 2 and expected in refused.stderr and not out.exists()

    def interrupt(result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remake_students.remake(folder / "run", [smaller], out, on_student=interrupt)
    assert not out.exists()
    done = CliRunner().invoke(main, [*command, smaller])
    assert done.exit_code == 0, done.output
    made = run_folder.load(out)
    assert (made.rounds, made.model, made.accuracy) == (first.rounds, first.model, first.accuracy)
    assert made.totals.down_bytes == first.totals.down_bytes - first.totals.bundle_bytes
    (student,) = made.students
    assert student.tier == "watch" and student.parameters < first.model.parameters / 20
    opened = CliRunner().invoke(main, ["inspect", str(next((out / "bundles" / "watch").iterdir()))])
    assert opened.exit_code == 0 and student.sha256 in opened.stdout and "int4" in opened.stdout
    assert (out / "report.html").is_file()


@pytest.mark.slow
def test_report_can_be_made_again(run):
    folder, _ = run
    (folder / "run" / "report.html").unlink()
    done = CliRunner().invoke(main, ["report", str(folder / "run")])
    assert (done.exit_code, done.stdout) == (0, f"{folder}/run/report.html\n")
    assert (folder / "run" / "report.html").is_file()


@pytest.mark.slow
def test_inspect_a_run(run):
    folder, _ = run
    done = CliRunner().invoke(main, ["inspect", str(folder / "run"), "--json", str(folder / "inspected.json")])
    assert done.exit_code == 0, done.stderr
    assert "/run: a run" in done.stdout and "2 of 2" in done.stdout
    assert json.loads((folder / "inspected.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_inspect_a_bundle_and_one_with_a_flipped_bit(run):
    folder, _ = run
    bundle = next(path for path in sorted((folder / "run" / "bundles").rglob("*")) if path.is_file())
    done = CliRunner().invoke(main, ["inspect", str(bundle)])
    assert done.exit_code == 0, done.stderr
    assert ": a bundle" in done.stdout and "tier" in done.stdout
    assert "int8 by channel" in done.stdout and "bits a number" in done.stdout and "signature" in done.stdout
    damaged = bytearray(bundle.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    (folder / "damaged").write_bytes(damaged)
    refused = CliRunner().invoke(main, ["inspect", str(folder / "damaged")])
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: ") and isinstance(refused.exception, SystemExit)


@pytest.mark.slow
def test_bundles_are_signed_with_the_key_that_the_scenario_names(tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    raw, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem, public = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    keys = [Ed25519PrivateKey.generate() for _ in range(2)]
    (tmp_path / "key.pem").write_bytes(keys[0].private_bytes(pem, raw, no_password))
    for number, key in enumerate(keys):
        (tmp_path / f"{number}.pub.pem").write_bytes(key.public_key().public_bytes(pem, public))
    students = f"{{tiers: [{{name: phone, parameters: 0.1}}], distill: {{epochs: 1}}, signing_key: {tmp_path}/%s}}"
    command = ["simulate", "digits", "--set", "rounds=1", "--set", "workers=1", "--out", str(tmp_path / "run"), "--set"]
    absent = CliRunner().invoke(main, [*command, f"students={students % 'absent.pem'}"])
    assert absent.exit_code == 2 and "cannot read the key" in absent.stderr and not (tmp_path / "run").exists()
    assert CliRunner().invoke(main, [*command, f"students={students % 'key.pem'}"]).exit_code == 0
    (bundle,) = (tmp_path / "run" / "bundles" / "phone").iterdir()
    verified, refused = (
        CliRunner().invoke(main, ["inspect", str(bundle), "--key", str(tmp_path / f"{n}.pub.pem")]) for n in (0, 1)
    )
    assert verified.exit_code == 0 and "0.pub.pem" in verified.stdout
    assert refused.exit_code == 2 and "made or changed by somebody else" in refused.stderr


def test_inspect_a_payload_and_a_truncated_one(tmp_path):
    import numpy as np

    layout = layouts.Layout.of_arrays({"weight": np.zeros((100, 10), np.float32)})
    update = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    made = encoder.sparse(selection.top_k(0.05), values.by_name("ternary"))
    payload, *_ = made.encode(update, made.init(layout), SideInfo(layout), 1)
    (tmp_path / "payload").write_bytes(payload)
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "payload"), "--json", str(tmp_path / "payload.json")])
    assert done.exit_code == 0, done.stderr
    assert "payload: a payload" in done.stdout
    assert "50 of 1,000 (5.000%)" in done.stdout
    assert json.loads((tmp_path / "payload.json").read_text())["count"] == 50
    (tmp_path / "payload").write_bytes(payload[:-1])
    refused = CliRunner().invoke(main, ["inspect", str(tmp_path / "payload")])
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: ") and isinstance(refused.exception, SystemExit)


def test_init_explains_what_comes_next_and_overwrites_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(main, ["init", "study"])
    assert made.exit_code == 0
    assert made.stdout.splitlines()[-1] == "run it: fedpress simulate study"
    again = CliRunner().invoke(main, ["init", "study"])
    assert again.exit_code == 2
    assert "are left as they are" in again.stderr


def test_init_writes_the_keys_that_few_runs_need_if_asked(tmp_path):
    for name, options in (("front", []), ("every", ["--all"])):
        assert CliRunner().invoke(main, ["init", str(tmp_path / name), *options]).exit_code == 0
    front, every = ((tmp_path / name / "scenario.yaml").read_text() for name in ("front", "every"))
    assert "staleness_exponent" in every and "staleness_exponent" not in front


@pytest.mark.slow
def test_ctrl_c_and_sigterm_leave_a_readable_folder_that_goes_on_and_says_so(tmp_path):
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
    assert "To go on: fedpress simulate --resume run" in err
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
