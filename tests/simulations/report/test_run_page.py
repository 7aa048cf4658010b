"""The report: one file that needs nothing else, in which every figure of the run can be found."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from fedpress.compression.ledger import Ledger
from fedpress.compression.models.step import CandidateResult
from fedpress.simulations.report import figures, run_page, tables
from fedpress.simulations.results.records import (
    LayerDensity,
    ModelInfo,
    Results,
    RoundResult,
    StudentResult,
    TierResult,
    Totals,
)
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError

VOID = {"meta", "br", "link", "img", "input", "hr"}


def a_round(number: int, **changes: object) -> RoundResult:
    base = RoundResult(
        round=number, accuracy=0.1 * number, loss=2.0, up_bytes=9_000, down_bytes=400_000, replies=4, refused=0
    )
    return base.model_copy(update=changes)


def some_results(**changes: object) -> Results:
    base = Results(
        scenario={"name": "digits", "rounds": 3, "encoder": {"values": "ternary"}},
        seed=7,
        status="finished",
        rounds=[
            a_round(1),
            a_round(2, accuracy=None, loss=None),
            a_round(3, replies=2, refused=2, reasons={"NonFiniteValues": 1, "late": 1}),
        ],
        totals=Totals(
            up_bytes=27_000,
            down_bytes=1_200_000,
            dense_up_bytes=5_400_000,
            dense_down_bytes=1_200_000,
            bundle_bytes=38_000,
        ),
        model=ModelInfo(parameters=100_000, sha256="ab" * 32),
        students=[
            StudentResult(
                tier="phone",
                version=3,
                parameters=15_000,
                bundle_bytes=16_000,
                accuracy=0.871,
                claimed_accuracies=[0.86, 0.871],
                teacher_accuracy=0.893,
                student_accuracy=0.882,
                quantized_accuracy=0.871,
                sha256="cd" * 32,
            )
        ],
        layers=[
            LayerDensity(name="0.weight", size=99_000, sent=900),
            LayerDensity(name="0.bias", size=1_000, sent=100),
        ],
        accuracy=0.2,
        seconds=12.3,
    )
    return base.model_copy(update=changes)


def some_ledger() -> Ledger:
    ledger = Ledger()
    for number in (1, 2, 3):
        for node in range(4):
            ledger.record(number, node, "up", "update", 2_200)
            ledger.record(number, node, "up", "metrics", 50)
            ledger.record(number, node, "down", "model", 100_000)
    ledger.record(3, 0, "down", "bundle", 38_000)
    return ledger


def a_run(folder: Path, results: Results | None = None) -> RunFolder:
    run = RunFolder.create(folder)
    run.save_results(results or some_results())
    some_ledger().save(run.ledger)
    return run


class Reader(HTMLParser):
    """Checks that tags nest; gathers ids, references and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "xlink:href", "src"):
                self.references.append(str(value))
            self.references += re.findall(r"url\(([^)]*)\)", str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def text_of(html: str) -> str:
    return " ".join("".join(read(html).text).split())


def curves(svg: str) -> list[list[tuple[float, float]]]:
    """The points of every line drawn with a color of the page, in the SVG's coordinates."""
    found = []
    for path in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path"):
        if "clip-path" in path.attrib and "fill: none" in path.get("style", ""):
            numbers = re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path.get("d", ""))
            found.append([(float(x), float(y)) for x, y in numbers])
    return found


def test_the_page_of_a_run_folder_holds_every_figure(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    assert run_page.write(run.path) == run.report
    text = text_of(run.report.read_text(encoding="utf-8"))
    for expected in (
        "digits Seed 7 · 3 rounds · 100,000 parameters · 12 s of computing",
        "Accuracy on test data20.0 %mean of the last 3 rounds",
        "Bytes up27.0 kB200x fewer than dense (5.40 MB)",
        "Bytes down1.20 MBdense: 1.20 MB",
        "Student downloads38.0 kB",
        "Replies refused2of 12 replies",
        "up: update",
        "26.4 kB (2.1 %)",
        "down: model",
        "0.91 % of 99,000",
        "10.00 % of 1,000",
        "1.00 % of 100,000",
        "phone 3 15,000 16.0 kB 25x 89.3 % 88.2 % 87.1 % 86.00% to 87.10% −2.2".replace(" ", ""),
        "NonFiniteValues",
        "late",
        "ab" * 32,
        "values: ternary",
    ):
        assert expected.replace(" ", "") in text.replace(" ", ""), expected


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    html = run_page.write(run.path).read_text(encoding="utf-8")
    reader = read(html)
    assert reader.references  # clip paths and markers
    assert {reference[:1] for reference in reader.references} == {"#"}
    assert {reference[1:] for reference in reader.references} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    assert "<script" not in html
    assert "@import" not in html


def test_the_same_run_gives_the_same_page() -> None:
    assert run_page.render(some_results(), some_ledger()) == run_page.render(some_results(), some_ledger())


def variables(html: str) -> tuple[dict[str, str], dict[str, str]]:
    """The colors of the light and of the dark page, by variable."""
    light, dark = (dict(re.findall(r"(--\w+): (#\w{6})", block)) for block in re.findall(r":root \{([^}]*)\}", html))
    return light, dark


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.2) of `#rrggbb`."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_color_reads_on_light_and_on_dark() -> None:
    html = run_page.render(some_results(), some_ledger())
    light, dark = variables(html)
    assert set(re.findall(r"var\((--\w+)\)", html)) <= light.keys() == dark.keys()
    for colors in (light, dark):
        for background in ("--page", "--card"):
            for role in ("--ink", "--muted", "--first", "--second"):
                lighter, darker = sorted((luminance(colors[role]), luminance(colors[background])), reverse=True)
                assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (role, background)
    # A figure that brought a color of its own would not follow the page.
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg)


def test_accuracy_stands_over_the_bytes_of_all_rounds_so_far() -> None:
    rounds = [a_round(1, up_bytes=100, down_bytes=0), a_round(2, up_bytes=900, down_bytes=0)]
    results = some_results(rounds=rounds, totals=some_results().totals.model_copy(update={"dense_up_bytes": 10_000}))
    svg = re.findall(r"<svg.*?</svg>", run_page.render(results, None), flags=re.DOTALL)[1]
    up, both, dense = [
        line for line in curves(svg) if len(line) == 2 and line[0] != line[1] and line[0][1] != line[1][1]
    ]
    # 100, 1,000 and 10,000 bytes: equal steps on a logarithmic axis.
    assert up[1][0] - up[0][0] == pytest.approx(dense[0][0] - up[1][0], rel=1e-3)
    assert both == up  # nothing came down
    assert up[0][1] > up[1][1]  # higher accuracy is higher up


def test_rounds_that_were_not_evaluated_are_not_drawn() -> None:
    rounds = [a_round(number, accuracy=0.5 if number in (1, 4, 5) else None) for number in range(1, 6)]
    svg = re.findall(r"<svg.*?</svg>", run_page.render(some_results(rounds=rounds), None), flags=re.DOTALL)[0]
    single, mean = [line for line in curves(svg) if len(line) == 3]
    for line in (single, mean):
        steps = [after[0] - before[0] for before, after in pairwise(line)]
        assert steps[0] == pytest.approx(3 * steps[1], rel=1e-3)


def test_architectures_that_were_tried_are_drawn_where_there_are_some() -> None:
    tried = [
        CandidateResult(start="pruned", widths={"0": 3}, parameters=size, cost=size, score=1.0, epochs=5,
                        accuracy=accuracy, loss=0.1, uniform=size == 900, chosen=size == 1_200)
        for size, accuracy in ((900, 0.9), (1_200, 0.94), (1_300, 0.91))
    ]  # fmt: skip
    unseen = CandidateResult(start="pruned", widths={"0": 2}, parameters=1_000, cost=1_000, score=0.5)
    student = some_results().students[0].model_copy(update={"candidates": [*tried, unseen]})
    with_search = run_page.render(some_results(students=[student]), None)
    assert "Architectures that were tried" in text_of(with_search)
    assert "Architectures that were tried" not in text_of(run_page.render(some_results(), None))
    points = [figures.Tried(one.parameters, one.accuracy or 0.0, one.uniform, one.chosen) for one in tried]
    *_, front = curves(figures.pareto(points, "parameters").svg())  # the lines of the grid come first
    heights = [y for _, y in front]
    assert heights == sorted(heights, reverse=True)  # downwards in an SVG: the front never falls
    assert len(set(heights)) == 2


def test_the_mean_runs_over_the_last_ten_rounds() -> None:
    rounds = [a_round(number, accuracy=0.2 if number <= 10 else 0.6) for number in range(1, 21)]
    svg = re.findall(r"<svg.*?</svg>", run_page.render(some_results(rounds=rounds), None), flags=re.DOTALL)[0]
    _, mean = [[y for _, y in line] for line in curves(svg) if len(line) == 20]
    assert mean[14] == pytest.approx((mean[0] + mean[19]) / 2, abs=1e-3)  # round 15: five of each
    assert "mean of 10 rounds, the last 60.0 %" in svg


@pytest.mark.parametrize(
    ("status", "expected"), [("interrupted", "was interrupted"), ("running", "is not finished"), ("finished", None)]
)
def test_the_page_says_when_a_run_did_not_finish(status: str, expected: str | None) -> None:
    text = text_of(run_page.render(some_results(status=status), some_ledger()))
    assert ("was interrupted" in text or "is not finished" in text) == (expected is not None)
    assert expected is None or expected in text


def test_the_page_says_why_a_run_has_failed() -> None:
    page = run_page.render(some_results(status="failed", reason="no reply <at all>"), some_ledger())
    assert "<strong>This run has failed:</strong> no reply &lt;at all&gt;." in page
    assert "is not finished" not in page


def test_a_run_that_did_nothing_has_a_page() -> None:
    nothing = Totals(up_bytes=0, down_bytes=0, dense_up_bytes=0, dense_down_bytes=0)
    empty = some_results(rounds=[], students=[], layers=[], totals=nothing, accuracy=None, status="interrupted")
    text = text_of(run_page.render(empty, Ledger()))
    for expected in (
        "No round was evaluated",
        "No student was published",
        "Every reply was accepted",
        "holds no ledger.csv, or an empty one",
        "Not recorded for this run",
    ):
        assert expected in text


def test_names_from_outside_stay_text() -> None:
    scenario = {"name": "<script>alert(1)</script>", "note": "</pre><b>"}
    layers = [LayerDensity(name="<b>$x_1$&", size=10, sent=1)]
    html = run_page.render(some_results(scenario=scenario, layers=layers), some_ledger())
    assert "<script>" not in html and "<b>$" not in html
    text = text_of(html)
    assert "<script>alert(1)</script>" in text
    assert "<b>$x_1$&" in text


def test_of_many_layers_the_first_are_drawn_and_the_page_says_so() -> None:
    layers = [LayerDensity(name=f"layer{number}.weight", size=10, sent=1) for number in range(100)]
    text = text_of(run_page.render(some_results(layers=layers), None))
    assert "layer39.weight" in text and "layer40.weight" not in text
    assert "the first 40 of 100 tensors" in text


def test_a_folder_without_a_ledger_still_gets_its_page(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    run.ledger.unlink()
    assert "holds no ledger.csv" in run_page.write(run.path).read_text(encoding="utf-8")


def test_a_torn_ledger_is_refused_and_the_old_page_stays(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    before = run_page.write(run.path).read_bytes()
    run.ledger.write_bytes(run.ledger.read_bytes()[:-20])
    with pytest.raises(RunFolderError, match=r"ledger\.csv, line 38"):
        run_page.write(run.path)
    assert run.report.read_bytes() == before


def test_numbers_are_written_as_people_read_them() -> None:
    assert run_page.format_percent(0.8412) == "84.1 %"
    assert run_page.format_percent(None) == "–"
    assert run_page.format_ratio(8.44) == "8.4x"
    assert run_page.format_ratio(265.3) == "265x"
    assert run_page.format_ratio(None) == "–"
    assert run_page.format_points(-0.0123) == "−1.2"
    assert run_page.format_points(0.004) == "+0.4"


def test_tiers_that_train_have_a_table_of_their_own() -> None:
    tiers = [
        TierResult(tier="phone", parameters=12_345, accuracy=0.25, up_bytes=5_000, down_bytes=70_000),
        TierResult(tier="sensor", parameters=678, accuracy=None, up_bytes=50, down_bytes=700),
    ]
    html = run_page.render(some_results(tiers=tiers), some_ledger())
    table = html[html.index("<h2>Tiers that train</h2>") :].partition("</table>")[0]
    for text in ("phone", "12,345", "25.0 %", "+5.0", "5.00 kB", "sensor", "678", "–"):
        assert f">{text}<" in table, text
    assert "Tiers that train" not in run_page.render(some_results(), some_ledger())


def test_time_and_energy_are_shown_where_there_is_a_network() -> None:
    plain = some_results()
    assert "Virtual time" not in run_page.render(plain, None) and "Energy" not in run_page.render(plain, None)
    network = plain.scenario | {"network": {"profile": "lte"}}
    totals = plain.totals.model_copy(update={"joules": 12_345.0})
    shown = run_page.render(
        some_results(scenario=network, totals=totals, rounds=[a_round(1, virtual_seconds=4321.4)]), None
    )
    assert "Virtual time" in shown and "4,321 s" in shown
    assert "Energy of communication" in shown and "12.3 kJ" in shown
    facts = dict(tables.run_facts(some_results(scenario=network, totals=totals)))
    assert facts["energy"].startswith("12.3 kJ") and facts["virtual time"] == "0.0 s"
    assert not {"energy", "virtual time"} & dict(tables.run_facts(plain)).keys()
