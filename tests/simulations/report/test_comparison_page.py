"""The page of several runs: curves, a table, what differs; seeds of one scenario are one curve."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from typer.testing import CliRunner

from fedpress.simulations.__main__ import main
from fedpress.simulations.report import comparison_page, drawings
from fedpress.simulations.results.records import ModelInfo, Results, RoundResult, StudentResult, Totals
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.scenario import scenario

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes the folder of a run of `digits` and returns its path."""

    def one(
        name: str,
        *settings: str,
        accuracy: float | None = 0.5,
        rounds: int = 4,
        done: int | None = None,
        up: int = 1_000,
        **changes: Any,
    ) -> Path:
        chosen = scenario.load("digits", [f"rounds={rounds}", *settings])
        found = [
            RoundResult(
                round=number, accuracy=(accuracy or 0) * number / rounds, loss=1.0, up_bytes=up, down_bytes=3 * up,
                replies=4, refused=0,
            )
            for number in range(1, (rounds if done is None else done) + 1)
        ]  # fmt: skip
        results = Results(
            scenario=chosen.model_dump(mode="json"),
            seed=chosen.seed,
            status="finished",
            rounds=found,
            totals=Totals(
                up_bytes=rounds * up,
                down_bytes=rounds * 3 * up,
                dense_up_bytes=400_000,
                dense_down_bytes=500_000,
            ),
            model=ModelInfo(parameters=1_000, sha256="ab" * 32),
            accuracy=accuracy,
            seconds=10.0,
        )
        run = RunFolder.create(tmp_path / "runs" / name)
        run.save_results(results.model_copy(update=changes))
        return run.path

    return one


def text_of(html: str) -> str:
    body = re.sub(r"<(style|script|svg)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def rows(html: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    table = html[html.index(f"<h2>{heading}</h2>") :].partition("</table>")[0]
    cut = re.findall(r"<tr>(.*?)</tr>", table, flags=re.DOTALL)
    return [[text_of(cell) for cell in re.findall(r"<t[hd]\b.*?</t[hd]>", row, flags=re.DOTALL)] for row in cut]


def labels(paths: list[Path]) -> list[str]:
    return [group.label for group in comparison_page.grouped(comparison_page.load(paths))]


def test_runs_stand_side_by_side(make: Make) -> None:
    runs = comparison_page.load([make("sparse"), make("dense", "density=0.5", accuracy=0.75, up=100_000)])
    html = comparison_page.render(runs)
    head, sparse, dense = rows(html, "Runs")
    assert head[:6] == ["Run", "Seed", "Rounds", "Accuracy", "Bytes up", "Bytes down"]
    assert sparse[1:] == ["1", "4", "50.0 %", "4.00 kB", "12.0 kB", "100x", "42x", "56x", "10"]
    assert dense[1:] == ["1", "4", "75.0 %", "400 kB", "1.20 MB", "1.0x", "0.4x", "0.6x", "10"]
    assert rows(html, "What differs") == [["Key", "sparse", "dense"], ["density", "0.01", "0.5"]]
    assert len(re.findall("<svg", html)) == 3


def test_seeds_of_one_scenario_are_one_curve_with_a_band_and_one_row(make: Make) -> None:
    seeds = [make(f"run-{seed}", f"seed={seed}", accuracy=accuracy) for seed, accuracy in enumerate((0.4, 0.8, 0.9))]
    (group,) = comparison_page.grouped(comparison_page.load(seeds))
    (curve,) = comparison_page._curves([group], "round")
    assert curve.x == [1, 2, 3, 4]
    last = [fmean4(accuracy) for accuracy in (0.4, 0.8, 0.9)]  # running means over the four rounds
    assert (curve.low[-1], curve.high[-1]) == pytest.approx((last[0], last[2]))
    assert curve.y[-1] == pytest.approx(sum(last) / 3)
    html = comparison_page.render(comparison_page.load(seeds))
    _, row = rows(html, "Runs")
    half = stats.t.ppf(0.975, 2) * stats.sem([40, 80, 90])
    assert row[1] == "0-2" and row[3] == f"70.0 % ± {half:.1f}"
    assert f"{seeds[1]}, seed 1: 80.0 %" in row[0]
    assert "from the least to the greatest of the seeds" in text_of(html)
    assert "It is one scenario, with different seeds." in text_of(html)


def test_budgets_targets_and_conditions_are_compared(make: Make) -> None:
    paths = [make("iid", "partition.kind=iid", accuracy=0.8), make("skewed", accuracy=0.6)]
    runs = comparison_page.load([*paths, make("dense", "density=0.5", accuracy=0.75, up=100_000)])
    html = comparison_page.render(runs)
    # Running means over four rounds of a quarter, a half, three quarters and all of the accuracy.
    head, iid, skewed, dense = rows(html, "Accuracy within a budget")
    assert head == ["Run", "16.0 kB", "1.60 MB"]
    assert iid == ["iid", "50.0 %", "50.0 %"]
    assert skewed == ["skewed", "37.5 %", "37.5 %"]
    assert dense == ["dense", "–", "46.9 %"]
    assert rows(html, "Cost to 37.0 %")[1:] == [
        ["iid", "3", "12.0 kB", "–"], ["skewed", "4", "16.0 kB", "–"], ["dense", "3", "1.20 MB", "–"]
    ]  # fmt: skip
    head, best, worst = rows(html, "Robustness")
    assert best[::2] == ["iid", "80.0 %"] and best[3] == "0.0" and best[1] == "partition.kind iid"
    assert worst[::2] == ["skewed", "60.0 %"] and worst[3] == "−20.0"
    asked = comparison_page.render(runs, comparison_page.Asked([900_000], 0.45))
    assert rows(asked, "Accuracy within a budget")[3] == ["dense", "28.1 %"]
    assert [row[1] for row in rows(asked, "Cost to 45.0 %")] == ["Rounds", "4", "–", "4"]


def test_budgets_of_the_command_line_are_megabytes(make: Make, tmp_path: Path) -> None:
    paths = [str(make("one")), str(make("two", "density=0.5"))]
    out = tmp_path / "page.html"
    options = ["--budget", "0.008", "--target", "0.2", "--out", str(out)]
    done = CliRunner().invoke(main, ["report", *paths, *options])
    assert done.exit_code == 0
    assert rows(out.read_text(), "Accuracy within a budget")[0] == ["Run", "8.00 kB"]
    assert "Cost to 20.0 %" in text_of(out.read_text())
    alone = CliRunner().invoke(main, ["report", paths[0], *options])
    assert alone.exit_code == 2 and "expected several, and got one" in alone.output


def fmean4(accuracy: float) -> float:
    return accuracy * (1 + 2 + 3 + 4) / 16


def test_the_band_is_drawn_around_the_line(make: Make) -> None:
    seeds = [make(f"run-{seed}", f"seed={seed}", accuracy=accuracy) for seed, accuracy in enumerate((0.4, 0.8))]
    drawing = comparison_page.drawings(comparison_page.grouped(comparison_page.load(seeds)))[0]
    blue = drawings.LIGHT["first"]
    root = ElementTree.fromstring(drawing.svg().encode())
    band = [one for one in root.iter() if "fill-opacity: 0.18" in one.get("style", "") or one.get("fill-opacity")]
    assert band and any(blue in one.get("style", "") for one in band)
    assert "var(--first)" in drawing.on_page() and blue not in drawing.on_page()


def test_a_seed_that_comes_again_begins_another_curve(make: Make) -> None:
    """Two versions of the code, run on the same seeds: their runs must not be averaged."""
    paths = [make("old-1"), make("old-2", "seed=2"), make("new-1"), make("new-2", "seed=2")]
    groups = comparison_page.grouped(comparison_page.load(paths))
    assert [[run.path.name for run in group.runs] for group in groups] == [["old-1", "old-2"], ["new-1", "new-2"]]
    assert labels(paths) == ["old-1 and 1 more", "new-1 and 1 more"]


def test_labels_are_the_shortest_that_tell_apart(make: Make) -> None:
    assert labels([make("a/one", "density=0.02"), make("a/two")]) == ["one", "two"]
    assert labels([make("b/one", "density=0.02"), make("c/one")]) == ["b/one", "c/one"]
    many = [
        make(f"{density}-{seed}", f"density={density}", f"downlink.density={more}", f"seed={seed}")
        for density, more in ((0.1, 0.01), (0.2, 0.01), (0.3, 0.02))
        for seed in (1, 2)
    ]
    assert labels(many) == ["density 0.1", "density 0.2", "density 0.3"]
    named = [make(f"{name}-{seed}", f"name={name}", f"seed={seed}") for name in ("left", "right") for seed in (1, 2)]
    assert labels(named) == ["left", "right"]
    assert labels(named[:2]) == ["left"]
    assert labels([*named[:2], make("left", "density=0.5")]) == ["left", "left (2)"]


def test_what_does_not_change_the_model_is_no_difference(make: Make) -> None:
    assert len(labels([make("one", "workers=1"), make("two", "workers=2", "seed=2")])) == 1


def test_keys_that_are_new_have_their_defaults(make: Make) -> None:
    old = make("old", "seed=2")
    results = RunFolder(old).load_results()
    fewer = {key: value for key, value in results.scenario.items() if key not in ("fusion", "faults", "sparsity")}
    RunFolder(old).save_results(results.model_copy(update={"scenario": fewer}))
    assert len(labels([old, make("new")])) == 1


def test_of_a_section_that_is_null_elsewhere_the_keys_are_shown(make: Make) -> None:
    groups = comparison_page.grouped(comparison_page.load([make("whole", "downlink=null"), make("thin")]))
    found = dict(comparison_page.differences(groups))
    assert found["downlink.levels"] == [None, 7] and "downlink" not in found
    task = comparison_page.grouped(comparison_page.load([make("a", "encoder=qsgd"), make("b")]))
    assert dict(comparison_page.differences(task))["encoder.recipe"] == ["qsgd", None]


def test_unfinished_runs_are_marked_and_stay_out_of_means(make: Make) -> None:
    whole = [make(f"run-{seed}", f"seed={seed}") for seed in (1, 2)]
    half = make("run-3", "seed=3", status="interrupted", done=2)
    html = comparison_page.render(comparison_page.load([*whole, half]))
    assert "Not finished, and shown as far as it got: run-3." in text_of(html)
    _, row, alone = rows(html, "Runs")
    assert row[1] == "1-2" and alone[1:3] == ["3", "2 of 4"] and "unfinished" in alone[0]
    curves = comparison_page._curves(comparison_page.grouped(comparison_page.load([*whole, half])), "both")
    assert [(curve.label, len(curve.x)) for curve in curves] == [("digits", 4), ("run-3 (unfinished)", 2)]


def test_runs_of_different_tasks_or_data_are_compared_with_a_warning(make: Make) -> None:
    digits = make("digits")
    other = make("other", "task=fashion-mnist", "evaluation.split=validation")
    text = text_of(comparison_page.render(comparison_page.load([digits, other])))
    assert "different tasks (digits, fashion-mnist): accuracies of different tasks do not compare" in text
    assert "Some of these runs were evaluated on test data, others on validation data" in text
    assert "different tasks" not in text_of(comparison_page.render(comparison_page.load([digits, make("again")])))


def test_a_run_without_an_evaluated_round_is_in_the_table_alone(make: Make) -> None:
    nothing = Totals(up_bytes=0, down_bytes=0, dense_up_bytes=0, dense_down_bytes=0)
    empty = {"done": 0, "accuracy": None, "totals": nothing, "status": "running"}
    runs = comparison_page.load([make("begun", **empty), make("whole")])
    html = comparison_page.render(runs)
    assert rows(html, "Runs")[1][2:9] == ["0 of 4", "–", "0 B", "0 B", "–", "–", "–"]
    assert len(re.findall("<svg", html)) == 3
    none = comparison_page.render(comparison_page.load([make("one", **empty), make("two", **empty)]))
    assert text_of(none).count("No round was evaluated.") == 3 and "<svg" not in none


def test_students_of_the_last_version_are_listed(make: Make) -> None:
    student = StudentResult(
        tier="phone", version=1, parameters=900, bundle_bytes=2_000, accuracy=0.1, teacher_accuracy=0.2,
        student_accuracy=0.2, quantized_accuracy=0.2, sha256="",
    )  # fmt: skip
    for seed in (1, 2):
        last = student.model_copy(update={"version": 2, "accuracy": 0.4 + 0.1 * seed, "teacher_accuracy": 0.6})
        make(f"run-{seed}", f"seed={seed}", students=[student, last])
    paths = [make("bare", "density=0.5")]
    paths += [paths[0].with_name(f"run-{seed}") for seed in (1, 2)]
    _, row = rows(comparison_page.render(comparison_page.load(paths)), "Students")
    assert row == ["digits", "phone", "900", "2.00 kB", "60.0 %", "55.0 %", "−5.0"]


def test_the_page_needs_nothing_else_and_can_be_used_without_its_script(make: Make) -> None:
    html = comparison_page.render(comparison_page.load([make("one"), make("two", "density=0.5")]))
    assert not re.findall(r"(?:src|href)=\"(?!#)", html) and "@import" not in html
    before, script = html.split("<script>")
    assert "<button" not in before  # they come with the script that gives them something to do
    assert "sort" in script
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"var\(--(\w+)\)", html)) <= {"page", "card", *drawings.LIGHT}


def test_names_from_outside_stay_text(make: Make) -> None:
    html = comparison_page.render(comparison_page.load([make("<b>one"), make("two$x_1$&")]))
    assert "<b>one" not in html and "&lt;b&gt;one" in html


def test_the_same_runs_give_the_same_page(make: Make) -> None:
    paths = [make("one"), make("two", "seed=2"), make("three", "density=0.5")]
    assert comparison_page.render(comparison_page.load(paths)) == comparison_page.render(comparison_page.load(paths))


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_compares_and_writes_figures(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(make("one")), str(make("two", "density=0.5"))]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["report", *paths])
    assert (done.exit_code, done.stdout) == (0, "comparison.html\n")
    done = CliRunner().invoke(main, ["report", *paths, "--out", "study.html", "--figures", "print/figures"])
    assert done.exit_code == 0
    written = done.stdout.split()
    assert written[0] == "study.html" and len(written) == 7
    for path in map(Path, written[1:]):
        data = path.read_bytes()
        if path.suffix == ".png":
            assert data.startswith(b"\x89PNG\r\n")
        else:
            assert ElementTree.fromstring(data).tag.endswith("svg") and b"var(--" not in data
    assert (tmp_path / "study.html").read_text() == (tmp_path / "comparison.html").read_text()


def test_the_command_writes_the_figures_of_one_run(make: Make, tmp_path: Path) -> None:
    run = make("one")
    done = CliRunner().invoke(main, ["report", str(run), "--figures", str(tmp_path / "figures")])
    assert done.exit_code == 0 and done.stdout.startswith(str(run / "report.html"))
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    kinds = ("accuracy-over-rounds", "accuracy-over-bytes")
    assert names == {kind + ending for kind in kinds for ending in (".svg", ".png")}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["one", "one"], "the run one is given twice; a comparison takes each once"),
        (["one", "../runs/one"], "the run ../runs/one is given twice (as one, too)"),
        (["one", "none"], "there is no run folder none"),
        (["one", "empty"], "empty holds no results.json"),
        (["one", "two", "--out", "nowhere/page.html"], "--out nowhere/page.html: there is no folder nowhere"),
        (["one", "two", "--out", "empty"], "--out empty: this is a folder; give the name of a file"),
        (["one", "--figures", "one/results.json"], "--figures one/results.json: expected a folder, and this is a file"),
    ],
)
def test_what_cannot_be_compared_is_said(
    make: Make, arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("one").parent
    make("two")
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(main, ["report", *arguments])
    assert done.exit_code == 2 and text in " ".join(done.stderr.split())
    assert not (folder / "comparison.html").exists()
