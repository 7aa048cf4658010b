"""Labeled texts of a folder: three forms, and clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpress.simulations.tasks import labeled_texts
from fedpress.simulations.tasks.registry import TaskError


def test_a_sub_folder_a_file_and_a_table_are_labels(tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    (tmp_path / "calm" / "1.txt").write_text("The sea\nis still.\n")
    (tmp_path / "calm" / "2.txt").write_text("  \n")
    (tmp_path / "storm.txt").write_text("Wind.\n\n  Rain falls. \n")
    (tmp_path / "sheet.tsv").write_text("calm\tNo cloud.\n\nstorm\tThunder,\tand hail.\n")
    (tmp_path / "notes.md").write_text("# not a text\n")
    assert labeled_texts.read(tmp_path) == [
        ("The sea is still.", "calm", "calm"),
        ("No cloud.", "calm", "sheet"),
        ("Thunder,\tand hail.", "storm", "sheet"),
        ("Wind.", "storm", "storm"),
        ("Rain falls.", "storm", "storm"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", b"calm\tsea\nno tab here\n", r"a.tsv, line 2: 'no tab here' is no label, tab and text"),
        ("a.tsv", b"\tsea\n", "line 1"),
        ("a.txt", b"caf\xe9\n", "a.txt: byte 3 is not UTF-8"),
        ("a.csv", b"calm,sea\n", "has no texts; expected a sub-folder for each label"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=expected):
        labeled_texts.read(tmp_path)
    with pytest.raises(TaskError, match="does not exist"):
        labeled_texts.read(tmp_path / "absent")
