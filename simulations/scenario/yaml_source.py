"""YAML of scenarios, suites and services, and `key=value` that changes one value.

Numbers are decimal, as in YAML 1.2: 010 is 10 and 1e-3 a number; a duplicate key is an error. All files are read here.

>>> parse("[010, 1e-3, 0x10, 1:30, 2026-01-01, null, true]")
[10, 0.001, 16, '1:30', '2026-01-01', None, True]
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import yaml

MOST_LETTERS: Final = 1 << 17
"""Longest text; a scenario with all keys has 20,000 letters."""
MOST_VALUES: Final = 20_000
"""Most values of a text, those of an alias counted wherever it stands."""
MOST_DEPTH: Final = 50


class _Loader(yaml.SafeLoader):
    """Safe YAML with two corrections, and bounds: a few lines of aliases can stand for more than memory holds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[int, int] = {}  # number of values of each node, by its id
        self._open = [0]  # number of values so far, of the nodes around the present one

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count the values of each node; refuse too many, or too deep ones, or an alias within what it stands for."""
        if len(self._open) > MOST_DEPTH:
            raise ValueError(f"not YAML that is read here: more than {MOST_DEPTH} lists or mappings within each other")
        is_alias = self.check_event(yaml.AliasEvent)
        line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
        self._open.append(0)
        node = super().compose_node(parent, index)
        inner = self._open.pop()
        if is_alias and id(node) not in self._sizes:
            raise ValueError(f"not YAML that is read here: the alias in line {line} stands within its own value")
        size = self._sizes[id(node)] if is_alias else self._sizes.setdefault(id(node), inner + 1)
        self._open[-1] += size
        if self._open[-1] > MOST_VALUES:
            raise ValueError(f"not YAML that is read here: more than {MOST_VALUES:,} values, up to line {line}")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Take keys as text, and refuse a duplicate one; PyYAML would silently take the last."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {_line(key)}: a key is a list or a mapping, expected text")
            if key.value in seen:
                raise ValueError(f"{key.value}: given twice, the second time in line {_line(key)}")
            seen.add(key.value)
            if key.tag != _MERGE:
                key.tag = _TEXT
        return node


_TEXT, _MERGE, _AMBIGUOUS = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge", "fedpress:ambiguous"
_INTEGER = r"[-+]?(0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+|[0-9]+(_[0-9]+)*)"
_DIGITS = r"[0-9]+(_[0-9]+)*"
_FLOAT = rf"[-+]?({_DIGITS}(\.({_DIGITS})?)?|\.{_DIGITS})([eE][-+]?[0-9]+)?"
_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (_INTEGER, list("-+0123456789")),
    "float": (rf"{_FLOAT}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
    "merge": (r"<<", ["<"]),
}
"""What a value without quotes may be besides text, nearly as in YAML 1.2: pattern, and first letters.

PyYAML follows YAML 1.1, where 010 is 8, 1:30 is 90, 1e-3 is text, 2026-01-01 a date, and no is false.
"""

_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_implicit_resolver(_AMBIGUOUS, re.compile(r"^(?:yes|no|on|off)$", re.IGNORECASE), list("yYnNoO"))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    """Return a whole number: decimal, also with zeros in front, unless 0x, 0o or 0b say otherwise."""
    sign, digits = (-1 if node.value[:1] == "-" else 1), node.value.lstrip("+-")
    try:
        return sign * int(digits, 0 if digits[:2].lower() in ("0x", "0o", "0b") else 10)
    except ValueError:
        raise ValueError(f"line {_line(node)}: {node.value!r} is no whole number") from None


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    """Return a number; one that is too large for a float is refused, and would be infinity."""
    text = node.value.lower()
    infinite = text.lstrip("+-") in (".inf", ".nan")
    try:
        number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise ValueError(f"line {_line(node)}: {node.value!r} is no number") from None
    if math.isinf(number) and not infinite:
        raise ValueError(f"line {_line(node)}: {node.value} is beyond the range of a float; write .inf for infinity")
    return number


def _ambiguous(loader: _Loader, node: yaml.ScalarNode) -> None:
    truth = "true" if node.value.lower() in ("yes", "on") else "false"
    raise ValueError(
        f"line {_line(node)}: {node.value} is {truth} to some readers of YAML and text to others; write {truth}, or"
        f' "{node.value}" in quotes'
    )


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_constructor(_AMBIGUOUS, _ambiguous)


class _Dumper(yaml.SafeDumper):
    """Safe YAML in which what only looks like a number, to this reader or to one of YAML 1.1, is in quotes."""


_Dumper.yaml_implicit_resolvers = {
    first: list(known) for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
for _name, (_pattern, _first) in _PLAIN.items():
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)


def write(value: Any, **options: Any) -> str:
    """Return a value as YAML that `parse` and readers of YAML 1.1 read as it is.

    Args:
        value: Plain data: mappings, lists, texts, numbers, truth values, None.
        **options: Of `yaml.dump`.
    """
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options)
    if parse(text) != value:  # PyYAML leaves some letters as they are that it then reads as another line
        text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, **options)
    return text


def parse(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: The text is not YAML, a key is given twice, a value is ambiguous, or there are more values than a
            scenario can have; the error names the line.
    """
    if len(text) > MOST_LETTERS:
        raise ValueError(f"not YAML that is read here: {len(text):,} letters, and at most {MOST_LETTERS:,} are allowed")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"not YAML: {where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # of an explicit tag, such as !!int ''
        raise ValueError(f"not YAML: a value does not fit its tag ({error!r})") from None


def read(text: str) -> dict[str, Any]:
    """Return the text of a scenario file as nested dictionaries.

    Raises:
        ValueError: As `parse`, or the file is not a mapping.
    """
    content = parse(text)
    if not isinstance(content, dict):
        raise ValueError(f"expected `key: value` lines, found {'nothing' if content is None else repr(content)[:60]}")
    return {str(key): value for key, value in content.items()}


_NAMED = {
    "task": "name",
    "base": "path",
    "encoder": "recipe",
    "sparsity": "method",
    "students": "recipe",
    "network": "profile",
}
"""Sections that may be written as a bare name -> the key of that name."""


def override(raw: dict[str, Any], assignment: str) -> None:
    """Change one value in place; missing sections on the path are made.

    >>> raw = {"task": "fashion-mnist", "students": {"tiers": [{"name": "a"}]}}
    >>> override(raw, "task.data_dir=/data")
    >>> override(raw, "students.tiers.0.parameters=0.1")
    >>> raw
    {'task': {'name': 'fashion-mnist', 'data_dir': '/data'}, 'students': {'tiers': [{'name': 'a', 'parameters': 0.1}]}}

    Args:
        raw: A scenario as read from YAML.
        assignment: "key=value"; the value is YAML.

    Raises:
        ValueError: The assignment is not key=value, or its path leads into a plain value or out of a list.
    """
    path, equals, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"override {assignment!r}: expected key=value, such as training.learning_rate=0.05")
    if not text.strip():
        raise ValueError(f"override {assignment!r}: there is no value; write null for none, or was a variable empty?")
    try:
        value = parse(text)
    except ValueError as error:
        raise ValueError(f"override {assignment!r}: {error}") from None
    place: Any = raw
    for depth, key in enumerate(keys[:-1]):
        step = _step(place, key, keys[: depth + 1], assignment)
        if isinstance(place, dict):
            if isinstance(place.get(step), str) and step in _NAMED:
                place[step] = {_NAMED[step]: place[step]}
            elif place.get(step) is None:
                place[step] = {}
        place = place[step]
    place[_step(place, keys[-1], keys, assignment)] = value


def _step(place: Any, key: str, path: list[str], assignment: str) -> Any:
    if isinstance(place, dict):
        return key
    above = ".".join(path[:-1])
    if isinstance(place, list):
        if key.isdigit() and int(key) < len(place):
            return int(key)
        raise ValueError(
            f"override {assignment!r}: {above} is a list of {len(place)}; expected an index from 0, got {key!r}"
        )
    raise ValueError(f"override {assignment!r}: {above} is the value {place!r} and has no keys")
