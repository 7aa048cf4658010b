"""Errors of a scenario as text: the key, the value given, what is allowed, and the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from fedpress.compression import settings, suggest
from fedpress.simulations.scenario.renamed import RENAMED


class Problems(ValueError):
    """Problems that a check across keys found at once; each text begins with its key."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


def explain(error: ValidationError, model: type) -> list[str]:
    """Return one line for each problem, in the order of the keys.

    Args:
        error: Of pydantic.
        model: Class of the whole scenario.
    """
    lines: dict[str, None] = {}
    for item in error.errors(include_url=False):
        raised = item.get("ctx", {}).get("error")
        if isinstance(raised, Problems):
            lines.update(dict.fromkeys(raised.problems))
            continue
        keys = _keys(item["loc"], model)
        lines[f"{'.'.join(map(str, keys)) or 'scenario'}: {_text(item, keys, model)}"] = None
    return list(lines)


def _allowed(annotation: Any) -> list[str]:
    """Return the words that a Literal, alone or in a union, allows."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in _allowed(part)]


def _text(item: Any, keys: list[str | int], model: type) -> str:
    kind, given, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "missing":
        field = _field(keys, model)
        return f"missing{f' ({field.description})' if field is not None and field.description else ''}"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        if (path := ".".join(key for key in keys if isinstance(key, str))) in RENAMED:
            return f"renamed to {RENAMED[path]} (value given: {_shown(given)})"
        return f"unknown key (value given: {_shown(given)}); {_nearest_key(keys, model)}"
    if kind == "literal_error":
        field = _field(keys, model)
        return f"got {_shown(given)}, expected {suggest.choices(_allowed(field.annotation), given)}"
    if kind in ("model_type", "dict_type", "model_attributes_type", "dataclass_type"):
        known = ", ".join(settings.fields(_section(keys, model)))
        return f"got {_shown(given)}, expected a section with the keys {known}"
    if "error" in context and kind == "value_error":
        return f"{context['error']}{'' if isinstance(given, dict) else f' (value given: {_shown(given)})'}"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return f"got {_shown(given)}, expected {_range(keys, model)}"
    wanted = _WANTED.get(kind)
    expected = wanted.format(**context) if wanted else item["msg"]
    return f"got {_shown(given)}, expected {expected}"


def _range(keys: list[str | int], model: type) -> str:
    """Return the limits of a number, such as "0 < density <= 1"."""
    while isinstance(keys[-1], int):  # an item of a list: its limits are in the list's annotation
        keys = keys[:-1]
    return limits(_field(keys, model)).format(keys[-1])


def limits(field: FieldInfo) -> str:
    """Return the limits of a number with {} in its place, such as "0 < {} <= 1"; without any, "{}"."""
    bounds = [*field.metadata, *(bound for part in get_args(field.annotation) for bound in _metadata(part))]
    given = {sign: _number(getattr(bound, sign)) for bound in bounds for sign in _SIGNS if hasattr(bound, sign)}
    low = "".join(f"{value} {_SIGNS[sign]} " for sign, value in given.items() if sign in ("gt", "ge"))
    high = "".join(f" {_SIGNS[sign]} {value}" for sign, value in given.items() if sign in ("lt", "le"))
    return f"{low}{{}}{high}"


def _number(value: float) -> str:
    large_power_of_two = isinstance(value, int) and value > 1000 and value.bit_count() == 1
    return f"2^{int(value).bit_length() - 1}" if large_power_of_two else f"{value:g}"


def _metadata(annotation: Any) -> Iterator[Any]:
    for limit in getattr(annotation, "__metadata__", ()):
        yield from limit.metadata if hasattr(limit, "metadata") else (limit,)


_SIGNS = {"gt": "<", "ge": "<=", "lt": "<", "le": "<="}


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_pattern_mismatch": "letters, digits, - and _ (pattern {pattern})",
    "tuple_type": "a list",
    "json_invalid": "JSON ({error})",
}


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _section(keys: Sequence[str | int], model: type) -> type:
    """Return the class of the section that `keys` lead to."""
    for key in keys:
        if isinstance(key, str) and key in settings.fields(model):
            model = next(settings.sections(settings.fields(model)[key].annotation), model)
    return model


def _field(keys: Sequence[str | int], model: type) -> Any:
    return settings.fields(_section(keys[:-1], model)).get(str(keys[-1]))


def _keys(place: Sequence[str | int], model: type) -> list[str | int]:
    """Return the keys of the file in pydantic's location: members of a union are dropped, indices of lists stay."""
    keys: list[str | int] = []
    for key in place:
        field = _field(keys, model) if keys else None
        if field is not None and isinstance(key, str) and not any(settings.sections(field.annotation)):
            break
        keys.append(key)
    return keys


def _nearest_key(keys: Sequence[str | int], model: type) -> str:
    """Return a hint: a similar key of the section, or the same key in another one."""
    known = list(settings.fields(_section(keys[:-1], model)))
    wrong = str(keys[-1])
    elsewhere = [".".join(path) for path in _paths(model) if path[-1] == wrong]
    if elsewhere:
        where = "is a key of the top level" if elsewhere[0] == wrong else f"is written {' or '.join(elsewhere)}"
        return f"{wrong!r} {where}"
    near = difflib.get_close_matches(wrong.lower().replace("-", "_"), known, 1)
    if near:
        return f"did you mean {near[0]!r}?"
    section = ".".join(map(str, keys[:-1]))
    return f"{section or 'a scenario'} has the keys {', '.join(known)}"


def _paths(model: type, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, field in settings.fields(model).items():
        yield (*above, key)
        for section in settings.sections(field.annotation):
            yield from _paths(section, (*above, key))
