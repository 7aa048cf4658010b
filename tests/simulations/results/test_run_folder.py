"""The run folder: made once, never mixed with what is there, readable however the run ended."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.simulations.report.test_plain import TEXTS, run

from fedpress.compression.errors import FedpressError
from fedpress.simulations.results import run_folder
from fedpress.simulations.results.records import (
    LayerDensity,
    ModelInfo,
    Results,
    RoundResult,
    StudentResult,
    Totals,
)
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError

COUNTS = st.integers(0, 2**53)
FRACTIONS = st.floats(0, 1)
NAMES = st.text(max_size=12)

ROUNDS = st.builds(
    RoundResult,
    round=COUNTS,
    accuracy=st.none() | FRACTIONS,
    loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    up_bytes=COUNTS,
    down_bytes=COUNTS,
    replies=COUNTS,
    refused=COUNTS,
    reasons=st.dictionaries(NAMES, COUNTS, max_size=3),
    virtual_seconds=st.floats(0, 1e9),
)
STUDENTS = st.builds(
    StudentResult,
    tier=NAMES,
    version=COUNTS,
    parameters=COUNTS,
    bundle_bytes=COUNTS,
    accuracy=FRACTIONS,
    teacher_accuracy=FRACTIONS,
    student_accuracy=FRACTIONS,
    quantized_accuracy=FRACTIONS,
    sha256=NAMES,
)
RESULTS = st.builds(
    Results,
    scenario=st.dictionaries(NAMES, st.none() | st.integers() | FRACTIONS | NAMES, max_size=4),
    seed=st.integers(),
    status=st.sampled_from(["running", "finished", "interrupted", "failed"]),
    rounds=st.lists(ROUNDS, max_size=4),
    totals=st.builds(
        Totals,
        up_bytes=COUNTS,
        down_bytes=COUNTS,
        dense_up_bytes=COUNTS,
        dense_down_bytes=COUNTS,
        bundle_bytes=COUNTS,
    ),
    model=st.builds(ModelInfo, parameters=COUNTS, sha256=NAMES),
    students=st.lists(STUDENTS, max_size=2),
    layers=st.lists(st.builds(LayerDensity, name=NAMES, size=COUNTS, sent=st.floats(0, 1e9)), max_size=2),
    accuracy=st.none() | FRACTIONS,
    seconds=st.floats(0, 1e9),
)


def results(**changes: object) -> Results:
    """Results of a run of one round."""
    base = Results(
        scenario={"name": "digits"},
        seed=1,
        status="finished",
        rounds=[RoundResult(round=1, accuracy=0.5, loss=1.0, up_bytes=10, down_bytes=20, replies=2, refused=0)],
        totals=Totals(up_bytes=10, down_bytes=20, dense_up_bytes=1000, dense_down_bytes=1000),
        model=ModelInfo(parameters=250, sha256="00"),
        accuracy=0.5,
        seconds=1.5,
    )
    return base.model_copy(update=changes)


@given(expected=RESULTS)
def test_results_survive_the_file(expected: Results, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = RunFolder.create(tmp_path_factory.mktemp("run") / "new")
    run.save_results(expected)
    assert run_folder.load(run.path) == expected


def test_results_json_has_the_documented_keys(tmp_path: Path) -> None:
    student = StudentResult(
        tier="phone",
        version=1,
        parameters=9,
        bundle_bytes=30,
        accuracy=0.5,
        teacher_accuracy=0.5,
        student_accuracy=0.5,
        quantized_accuracy=0.5,
        sha256="",
    )
    run = RunFolder.create(tmp_path / "run")
    run.save_results(results(students=[student]))
    written = json.loads(run.results.read_text())
    assert {"scenario", "seed", "rounds", "totals", "model", "students", "accuracy", "seconds"} <= written.keys()
    assert {
        "round",
        "accuracy",
        "loss",
        "up_bytes",
        "down_bytes",
        "replies",
        "refused",
    } <= written["rounds"][0].keys()
    assert {"up_bytes", "down_bytes", "dense_up_bytes", "dense_down_bytes"} <= written["totals"].keys()
    assert {"parameters", "sha256"} <= written["model"].keys()
    assert {"tier", "parameters", "bundle_bytes", "accuracy", "teacher_accuracy"} <= written["students"][0].keys()


def test_a_diverged_loss_is_written_as_null_so_that_the_file_stays_json(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    diverged = results().rounds[0].model_copy(update={"loss": float("nan")})
    run.save_results(results(rounds=[diverged]))
    assert json.loads(run.results.read_text())["rounds"][0]["loss"] is None
    assert run.load_results().rounds[0].loss is None


def test_keys_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.save_results(results())
    written = json.loads(run.results.read_text())
    written["rounds"][0]["added_later"] = written["added_later"] = 1
    run.results.write_text(json.dumps(written))
    assert run.load_results() == results()


def test_a_run_without_a_place_goes_under_runs_and_two_in_a_second_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {RunFolder.create(name="digits").path for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.parent == Path("runs") and folder.name.startswith("digits-") for folder in folders)
    assert all(folder.is_dir() and not list(folder.iterdir()) for folder in folders)


def test_a_folder_that_is_empty_is_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert RunFolder.create(tmp_path / "run").path == tmp_path / "run"


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"is not empty.*another folder"):
        RunFolder.create(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["precious.txt"]


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder.create(file)
    with pytest.raises(RunFolderError, match="cannot make the run folder"):
        RunFolder.create(file / "below")
    with pytest.raises(RunFolderError, match=r"is a file; expected the folder"):
        RunFolder.open(file)


def test_a_missing_run_is_named_with_the_newest_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFolderError, match="there is no run folder gone$"):
        run_folder.load("gone")
    run = RunFolder.create(name="digits")
    run.save_results(results())
    with pytest.raises(RunFolderError, match=f"the newest are {run.path}"):
        run_folder.load("gone")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"holds no results\.json"):
        run_folder.load(tmp_path)


def test_torn_results_are_refused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.save_results(results())
    whole = run.results.read_bytes()
    for length in range(0, len(whole) - 2, 7):
        run.results.write_bytes(whole[:length])
        with pytest.raises(RunFolderError, match="torn"):
            run.load_results()


def test_results_of_another_shape_name_what_is_wrong(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.save_results(results())
    written = json.loads(run.results.read_text())
    del written["seed"]
    written["rounds"][0]["up_bytes"] = "many"
    run.results.write_text(json.dumps(written))
    with pytest.raises(RunFolderError, match=r"seed: Field required; rounds\.0\.up_bytes: "):
        run.load_results()
    run.results.write_text("[]")
    with pytest.raises(RunFolderError, match="the file: "):
        run.load_results()


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        run_folder.write_atomically(target, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_the_error_is_one_of_fedpress() -> None:
    assert issubclass(RunFolderError, FedpressError)


@pytest.mark.parametrize(
    ("place", "number", "named"),
    [
        (("rounds", 0, "up_bytes"), 10**308, "rounds.0.up_bytes is 1000"),
        (("rounds", 0, "up_bytes"), -1, "rounds.0.up_bytes is -1"),
        (("seconds",), 1e308, "seconds is 1e.308"),
        (("accuracy",), -0.5, "accuracy is -0.5"),
        (("students", 0, "parameters"), -3, "students.0.parameters is -3"),
        (("phases", "training"), 1e300, "phases.training is 1e.300"),
    ],
)
def test_figures_that_no_run_can_have_are_named(
    place: tuple[str | int, ...], number: float, named: str, tmp_path: Path
) -> None:
    content = json.loads(run([f"name{count}" for count in range(TEXTS)]).model_dump_json())
    content["phases"] = {"training": 1.0}
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = number
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(RunFolderError, match=named):
        RunFolder.open(tmp_path).load_results()


@pytest.mark.parametrize("data", [b"", b"\0", b"{" * 5000, b"[]", b"\xff", b'{"seed": NaN}', b"1e308"])
def test_a_file_that_is_no_run_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(data)
    with pytest.raises(RunFolderError, match="results.json"):
        RunFolder.open(tmp_path).load_results()


@pytest.mark.parametrize(
    "data", [b"\0", b"round,node,direction,kind,bytes\n\0,1,up,update,3\n", b"\xff", b"a" * 200_000]
)
def test_a_damaged_ledger_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "ledger.csv").write_bytes(data)
    with pytest.raises(RunFolderError):
        RunFolder(tmp_path).load_ledger()
