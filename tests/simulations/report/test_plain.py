"""Text from scenarios, clients and files is shown and does nothing else: on pages, in figures, tables and terminals."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fedpress.compression.ledger import Ledger
from fedpress.simulations.report import comparison_page, drawings, figures, plain, run_page, tables
from fedpress.simulations.report.comparison_page import ComparedRun
from fedpress.simulations.results.records import Results

HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onload='alert(1)", "</svg></div><iframe>",
    "</style><link rel=x>", "{{ 7 * 7 }}{% raw %}", "a\\g<0>\\1\\", "$x^{2}$", "_hidden", "", " ", "\x00",
    "\x1b[2J\x1b]0;x", "two\r\nlines", "\u202egnp", "../../etc/x", "javascript:alert(1)", "&lt;&#60;", "]]><!--",
    "\ufffe\uffff", "漢字🙂",
)  # fmt: skip
names = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
TEXTS = 14


def run(texts: list[str]) -> Results:
    """A finished run with these texts wherever results.json has one."""
    text = iter(texts)
    stage = {"parameters": 9, "size_bytes": 36, "latency_ms": 1.0, "accuracy": 0.5, "worst_class": 1, "worst_lost": 0.1}
    step = {"kept": 1.0, "parameters": 9, "accuracy": 0.5, "taken": True}
    candidate = {"widths": {"a": 1}, "parameters": 9, "cost": 1.0, "score": 1.0, "accuracy": 0.5, "chosen": True}
    tier = next(text)
    rounds = [
        {
            "round": number, "accuracy": 0.4 + number / 100, "loss": 1.0, "up_bytes": 100, "down_bytes": 200,
            "replies": 2, "refused": 1, "reasons": {texts[1]: 1}, "tiers": {tier: {
                "accuracy": 0.5, "loss": 1.0, "up_bytes": 50, "down_bytes": 50, "replies": 1,
            }},
        }
        for number in (1, 2)
    ]  # fmt: skip
    next(text)
    student = {
        "tier": next(text), "version": 2, "parameters": 9, "bundle_bytes": 40, "accuracy": 0.5,
        "teacher_accuracy": 0.5, "student_accuracy": 0.5, "quantized_accuracy": 0.5, "sha256": next(text),
        "warning": f"!{next(text)}",
        "stages": [{**stage, "name": next(text)}, {**stage, "name": next(text)}],
        "curve": [step, {**step, "kept": 0.5}], "candidates": [{**candidate, "start": next(text)}],
        "timings": [{"layer": next(text), "density": 0.5, "dense_ms": 1.0, "sparse_ms": 2.0, "chosen": next(text)}],
    }  # fmt: skip
    return Results.model_validate(
        {
            "scenario": {"name": next(text), "evaluation": {"split": next(text)}, "task": {"name": next(text)}},
            "seed": 1, "status": "finished", "rounds": rounds, "seconds": 1.0, "accuracy": 0.5, "students": [student],
            "totals": {"up_bytes": 200, "down_bytes": 400, "dense_up_bytes": 900, "dense_down_bytes": 900},
            "model": {"parameters": 9, "sha256": "ab"}, "layers": [{"name": next(text), "size": 9, "sent": 3.0}],
            "tiers": [{"tier": tier, "parameters": 9, "accuracy": 0.5, "up_bytes": 100, "down_bytes": 100}],
        }
    )  # fmt: skip


class Structure(HTMLParser):
    """Tags of a page with the names of their attributes, in order, and its comments and declarations."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[Any] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(tag)

    def handle_comment(self, data: str) -> None:
        self.found.append("comment")

    def handle_decl(self, decl: str) -> None:
        self.found.append(decl)

    def handle_pi(self, data: str) -> None:
        self.found.append("instruction")


def pages(texts: list[str], folder: str) -> list[str]:
    ledger = Ledger()
    ledger.record(1, 1, "up", "update", 100)
    results = run(texts)
    other = results.model_copy(update={"scenario": {**results.scenario, "task": {"name": "another"}}})
    both = [
        ComparedRun(Path("runs", folder.replace("/", "-").replace("\0", "-") or "x"), results),
        ComparedRun(Path("runs/other"), other),
    ]
    return [run_page.render(results, ledger), comparison_page.render(both)]


HARMLESS = [Structure(page).found for page in pages([f"name{number}" for number in range(TEXTS)], "run")]


@pytest.mark.parametrize("first", [0, 7, 14])
def test_a_page_has_the_tags_and_attributes_of_its_template_and_no_others(first: int) -> None:
    texts = [HOSTILE[(first + number) % len(HOSTILE)] for number in range(TEXTS)]
    assert [Structure(page).found for page in pages(texts, f"{texts[0]}!")] == HARMLESS


@pytest.mark.long
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate])
@given(st.lists(names, min_size=TEXTS, max_size=TEXTS))
def test_whatever_the_names_are(texts: list[str]) -> None:
    assert [Structure(page).found for page in pages(texts, f"{texts[0]}!")] == HARMLESS


def test_figures_are_files_within_their_folder_and_valid_xml(tmp_path: Path) -> None:
    drawn = [figures.bars(f"pruning-{text}", [figures.Bar(text, 1.0, text)]) for text in HOSTILE]
    written = drawings.save(drawn, tmp_path)
    assert {path.parent for path in written} == {tmp_path} and sorted(tmp_path.iterdir()) == sorted(set(written))
    assert len(set(written)) == 2 * len(HOSTILE)
    for path in tmp_path.glob("*.svg"):
        ElementTree.fromstring(path.read_bytes())


@given(names, names)
def test_a_table_has_a_line_for_each_row_and_no_control_characters(name: str, value: str) -> None:
    lines = [*tables.fact_lines([(name, value)]), *tables.table_lines(("a", "b"), [(name, value)])]
    assert len(lines) == 3 and all(line.isprintable() for line in lines)


@given(names)
def test_what_can_be_printed_stays(text: str) -> None:
    assert plain.printable(text).isprintable()
    assert (plain.printable(text) == text) is text.isprintable()


@given(st.lists(names, min_size=1, max_size=4))
def test_a_markdown_table_has_a_cell_for_each_text(texts: list[str]) -> None:
    row = " | ".join(map(plain.markdown, texts))
    unescaped = row.replace("\\\\", "").replace("\\|", "")
    assert unescaped.count("|") == len(texts) - 1 and "<" not in row and row.isprintable()
