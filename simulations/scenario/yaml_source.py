"""YAML of scenarios: 1e-3 is a number, a duplicate key is an error, and `key=value` changes one value."""

from __future__ import annotations

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

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a duplicate key; PyYAML would silently take the last one."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise ValueError(f"{key}: given twice, the second time in line {key_node.start_mark.line + 1}")
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML follows, requires the dot of 1.0e-3 and reads 1e-3 as text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: The text is not YAML, a key is given twice, or there are more values than a scenario can have; the
            error names the line.
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


_NAMED = {"task": "name", "encoder": "recipe", "sparsity": "method", "network": "profile"}
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
