"""Labeled texts from a folder: a sub-folder or a .txt file for each label, or .tsv files of labels and texts."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fedpress.compression import files
from fedpress.simulations.tasks.registry import TaskError

EXPECTED = (
    "expected a sub-folder for each label with a .txt file for each text, a LABEL.txt with a text in each line, or .tsv"
    " files with a label, a tab and a text in each line"
)


class LabeledText(NamedTuple):
    """A text, its label, and whose it is."""

    text: str
    label: str
    owner: str


def read(folder: Path) -> list[LabeledText]:
    """Return the texts below a folder, in the order of their files' names; empty lines are left out.

    The owner of a text is the name of its file, or of the sub-folder.

    Args:
        folder: The folder.

    Raises:
        TaskError: It does not exist, has no such texts, or one cannot be read.
    """
    if not folder.is_dir():
        raise TaskError(f"task.data_dir: the folder {folder} does not exist; {EXPECTED}")
    texts: list[LabeledText] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            for file in sorted(path.glob("*.txt")):
                if text := " ".join(_read(file).split()):
                    texts.append(LabeledText(text, path.name, path.name))
        elif path.suffix == ".txt":
            lines = (line.strip() for line in _read(path).splitlines())
            texts += [LabeledText(line, path.stem, path.stem) for line in lines if line]
        elif path.suffix == ".tsv":
            for number, line in enumerate(_read(path).splitlines(), 1):
                label, tab, text = line.partition("\t")
                if not line.strip():
                    continue
                if not tab or not label.strip() or not text.strip():
                    raise TaskError(f"{path}, line {number}: {line[:40]!r} is no label, tab and text")
                texts.append(LabeledText(text.strip(), label.strip(), path.stem))
    if not texts:
        raise TaskError(f"task.data_dir: {folder} has no texts; {EXPECTED}")
    return texts


def _read(path: Path) -> str:
    try:
        return files.read_text(path, files.MOST_DATA)
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {error.strerror}") from None
