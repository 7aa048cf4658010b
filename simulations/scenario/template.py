"""Texts from the declarations of a scenario's keys: the files of `fedpress init`, and the reference of keys.

    python -m fedpress.simulations.scenario.template docs/reference/scenario.md

writes the reference and prints the number of keys as JSON: {"front_keys": ..., "keys": ...}. Front keys are those that
are not declared `settings.ADVANCED`.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from fedpress.compression import settings
from fedpress.compression.errors import FedpressError
from fedpress.simulations.scenario import diagnostics, yaml_source
from fedpress.simulations.scenario.renamed import RENAMED
from fedpress.simulations.scenario.scenario import Scenario

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
# {keys}, with its default or an example; only task, clients and rounds must be given.

"""
ALL_KEYS = "Every key is here"
FRONT_KEYS = """\
`fedpress init --all` writes {count} keys more, which few runs need (docs/reference/scenario.md says what they are).
# Every other key is here"""


class InitError(FedpressError, ValueError):
    """The files cannot be written."""


def write(folder: Path, *, advanced: bool = False) -> list[Path]:
    """Write scenario.yaml and task.py into a folder, made if necessary, and return their paths.

    Args:
        folder: The folder.
        advanced: Whether scenario.yaml has the advanced keys too.

    Raises:
        InitError: One of the files exists, or the folder cannot be written.
    """
    paths = [folder / name for name in FILES]
    present = [str(path) for path in paths if path.exists()]
    if present:
        raise InitError(f"{' and '.join(present)} exist and are left as they are; give another folder")
    more = counts()["keys"] - counts()["front_keys"]
    written = ALL_KEYS if advanced else FRONT_KEYS.format(count=more)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = HEADER.format(folder=folder, keys=written) + commented(EXAMPLE, advanced=advanced)
        paths[0].write_text(text, encoding="utf-8")
        paths[1].write_text(SKELETON.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise InitError(f"cannot write into {folder}: {error.strerror or error}") from None
    return paths


def commented(section: Any, *, advanced: bool = True) -> str:
    """Return a scenario or other settings as YAML, with the description above each key; `scenario.load` reads it back.

    Args:
        section: The settings.
        advanced: Whether advanced keys with their default value are written.
    """
    return "\n".join(_lines(section, "", advanced)) + "\n"


def _lines(section: Any, indent: str, advanced: bool) -> Iterator[str]:
    for number, (key, field) in enumerate(settings.fields(type(section)).items()):
        value = getattr(section, key)
        if is_advanced(field) and not advanced and value == field.default:
            continue
        sections = list(settings.sections(field.annotation))
        if sections and (not indent or indent == "  " and number):
            yield ""
        yield from _comment(field.description or "", indent)
        if settings.is_section(type(value)):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ", advanced)
            for option, setting in (getattr(value, "model_extra", None) or {}).items():
                yield f"{indent}  {option}: {_inline(setting)}"
        elif isinstance(value, tuple) and value and settings.is_section(type(value[0])):
            yield f"{indent}{key}:"
            yield from (f"{indent}  - {_flow(item)}" for item in value)
        else:
            yield f"{indent}{key}: {_inline(value)}"
            for absent in sections if value is None else ():
                yield from (f"{indent}# {line}" for line in (f"{key}:", *_lines(absent(), "  ", advanced)))


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _flow(item: Any) -> str:
    return _inline(TypeAdapter(type(item)).dump_python(item, exclude_defaults=True))


def _inline(value: Any) -> str:
    return yaml_source.write(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


class Key(NamedTuple):
    """Key of a scenario.

    Attributes:
        path: Keys that lead to it, itself the last.
        field: Declaration.
        section: Class of the section that it holds; None: it holds a plain value.
        advanced: Whether it, or a section above it, is declared advanced.
    """

    path: tuple[str, ...]
    field: FieldInfo
    section: type | None
    advanced: bool


def is_advanced(field: FieldInfo) -> bool:
    """Whether a field is declared advanced."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("advanced"))


def keys(section: type = Scenario, above: tuple[str, ...] = (), advanced: bool = False) -> Iterator[Key]:
    """Yield all keys, each section before its own keys.

    Args:
        section: Class of the section.
        above: Keys that lead to the section.
        advanced: Whether all of its keys are advanced.
    """
    for name, field in settings.fields(section).items():
        below = next(settings.sections(field.annotation), None)
        key = Key((*above, name), field, below, advanced or is_advanced(field))
        yield key
        if below is not None:
            yield from keys(below, key.path, key.advanced)


def counts() -> dict[str, int]:
    """Return the number of keys, and of those that are not advanced."""
    advanced = [key.advanced for key in keys()]
    return {"front_keys": advanced.count(False), "keys": len(advanced)}


PAGE = """\
<!-- Written by `python -m fedpress.simulations.scenario.template docs/reference/scenario.md`; do not edit. -->
# Keys of a scenario

A scenario is a YAML file with these {keys} keys; `--set key=value` changes one, with dots between the keys of sections
(`--set partition.alpha=0.1`). Only `task`, `clients` and `rounds` must be given. {front_keys} of the keys are in the
file that `fedpress init` writes. The others are *advanced*: few runs need them, and `fedpress init --all` writes them,
too.
"""
OLD_NAMES = """
## Old names

A key of one of these names is refused, and the error says the new one:
{renamed}.
"""


def reference() -> str:
    """Return the reference of all keys as Markdown."""
    everything = list(keys())
    lines = [PAGE.format(**counts()), *_table([key for key in everything if len(key.path) == 1])]
    for key in everything:
        if key.section is not None:
            title = f"\n##{'#' * min(len(key.path) - 1, 2)} {'.'.join(key.path)}\n"
            about = textwrap.fill((key.section.__doc__ or "").split("\n\n")[0].replace("\n", " "), 120)
            below = [each for each in everything if each.path[:-1] == key.path]
            lines += [title, f"{about}\n", *_table(below)]
    renamed = ", ".join(f"`{old}` (`{new}`)" for old, new in RENAMED.items())
    return (
        "\n".join(lines) + "\n" + textwrap.fill(OLD_NAMES.format(renamed=renamed), 120, replace_whitespace=False) + "\n"
    )


def _table(rows: list[Key]) -> Iterator[str]:
    yield "| key | value | default | |"
    yield "|---|---|---|---|"
    for key in rows:
        name = f"`{key.path[-1]}`" + (" *advanced*" if key.advanced else "")
        default = "*required*" if key.field.is_required() else _default(key)
        yield f"| {name} | {_value(key)} | {default} | {_escaped(key.field.description or '')} |"


def _default(key: Key) -> str:
    value = key.field.get_default(call_default_factory=True)
    return "its own" if settings.is_section(type(value)) else f"`{_inline(value)}`"


def _value(key: Key) -> str:
    words = dict.fromkeys(_words(key.field.annotation))
    limits = diagnostics.limits(key.field)
    text = " or ".join(words) + (f", {limits.replace('{}', 'value')}" if limits.strip("{}") else "")
    return _escaped(text)


_WORDS: Final = {int: "whole number", float: "number", str: "text", bool: "true or false", NoneType: "null"}


def _words(annotation: Any) -> Iterator[str]:
    """Yield the kinds of values of a type, as words of the reference."""
    if settings.is_section(annotation):
        yield "section"
    elif annotation in _WORDS:
        yield _WORDS[annotation]
    elif get_origin(annotation) is Literal:
        yield from (f"`{choice}`" for choice in get_args(annotation))
    elif get_origin(annotation) is tuple:
        yield "list"
    elif get_origin(annotation) is dict:
        yield "section of names" if get_args(annotation)[1] is str else "section of numbers"
    else:
        for part in get_args(annotation):
            yield from _words(part)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
    print(json.dumps(counts()))
