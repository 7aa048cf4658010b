"""`fedpress init`: a scenario with every key explained, and a task to change, which run as they are."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from fedpress.compression import settings as declared
from fedpress.compression.errors import FedpressError
from fedpress.simulations.scenario.scenario import Scenario
from fedpress.simulations.scenario.section import Section

SKELETON = Path(__file__).parents[1] / "tasks" / "template.py"
FILES = ("scenario.yaml", "task.py")

EXAMPLE = Scenario.model_validate(
    {
        "name": "points",
        "task": {"name": "task:Points", "noise": 0.8},
        "clients": 20,
        "rounds": 20,
        "density": 0.05,
        "students": {"tiers": [{"name": "phone", "parameters": 0.25}, {"name": "sensor", "bundle_bytes": 1500}]},
    }
)

HEADER = """\
# A scenario: everything that a run depends on. The same file and seed give the same model, to the bit.
#   run it                 fedpress simulate {folder}
#   with one other value   fedpress simulate {folder} --set partition.alpha=0.1
# Every key is here, with its default or an example; only task, clients and rounds must be given.

"""


class InitError(FedpressError, ValueError):
    """The files cannot be written."""


def write(folder: Path) -> list[Path]:
    """Write scenario.yaml and task.py into a folder, which is made if need be.

    Raises:
        InitError: One of them is already there, or the folder cannot be written.
    """
    paths = [folder / name for name in FILES]
    present = [str(path) for path in paths if path.exists()]
    if present:
        raise InitError(f"{' and '.join(present)} exist and are left as they are; give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(HEADER.format(folder=folder) + commented(EXAMPLE), encoding="utf-8")
        paths[1].write_text(SKELETON.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise InitError(f"cannot write into {folder}: {error.strerror or error}") from None
    return paths


def commented(settings: Section) -> str:
    """A scenario, or other settings, as YAML with each key's description above it; `scenario.load` reads it back."""
    return "\n".join(_lines(settings, "")) + "\n"


def _lines(section: Any, indent: str) -> Iterator[str]:
    for number, (key, field) in enumerate(declared.fields(type(section)).items()):
        value = getattr(section, key)
        if key == "folder" and value is None:
            continue  # set by `load`; nobody needs to write it
        sections = list(declared.sections(field.annotation))
        if sections and (not indent or indent == "  " and number):
            yield ""
        yield from _comment(field.description or "", indent)
        if declared.is_section(type(value)):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
            for option, setting in (getattr(value, "model_extra", None) or {}).items():
                yield f"{indent}  {option}: {_inline(setting)}"
        elif isinstance(value, tuple) and value and declared.is_section(type(value[0])):
            yield f"{indent}{key}:"
            yield from (f"{indent}  - {_flow(item)}" for item in value)
        else:
            yield f"{indent}{key}: {_inline(value)}"
            for absent in sections if value is None else ():
                yield from (f"{indent}# {line}" for line in (f"{key}:", *_lines(absent(), "  ")))


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _flow(item: Any) -> str:
    return _inline(TypeAdapter(type(item)).dump_python(item, exclude_defaults=True))


def _inline(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
    return text.removesuffix("...\n").strip()
