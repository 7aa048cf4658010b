"""Settings: frozen dataclasses that check themselves, in the library and as a section of a scenario's YAML alike.

A setting is declared once, beside what uses it: its type, bounds, default and description. A scenario embeds the class
of the library as it is; the commented file of `fedpress init` and the reference of keys are written from it.

>>> @dataclass(frozen=True, config=STRICT)
... class Decay(Settings):
...     rate: Fraction = Field(default=0.9, description="Weight of the past.")
...     steps: int = Field(default=1, ge=1, json_schema_extra=ADVANCED, description="Steps between two decays.")
>>> Decay(0.5).changed("rate", "steps"), list(fields(Decay))
(True, ['rate', 'steps'])
>>> Decay(rate=2)
Traceback (most recent call last):
    ...
ValueError: Decay: rate: got 2, expected less than or equal to 1

Modules with settings that a scenario embeds import neither torch nor flwr: a scenario is read without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails

from fedpress.compression import suggest

__all__ = [
    "ADVANCED", "STRICT", "Field", "Fraction", "Positive", "Settings", "dataclass", "fields", "is_section", "sections",
]  # fmt: skip

STRICT: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)
"""No unknown keys, no silent conversions (`rounds: "3"` is an error), finite numbers."""

ADVANCED: Final[JsonDict] = {"advanced": True}
"""`json_schema_extra` of a field that the reference has, and the commented file of `fedpress init` has not."""

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class _Explained(type):
    """Metaclass that translates pydantic's error where a program constructs settings.

    A scenario's sections are not constructed by a call: there pydantic's own error stays, with the place in the file.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return an instance.

        Raises:
            ValueError: Values are missing, unknown or invalid; all of them are named.
        """
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            problems = dict.fromkeys(_explanation(item, cls) for item in error.errors(include_url=False))
            raise ValueError(f"{cls.__name__}: {'; '.join(problems)}") from None


class Settings(metaclass=_Explained):
    """Base of settings; a subclass is decorated with `@dataclass(frozen=True, config=STRICT)`."""

    def changed(self, *keys: str) -> bool:
        """Return whether one of these fields has another value than its default."""
        return any(getattr(self, key) != fields(type(self))[key].default for key in keys)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let a section of a file stand for the dataclass; its fields stay strict."""
        schema = handler(source)
        return {**schema, "strict": False} if schema["type"] == "dataclass" else schema


def is_section(annotation: Any) -> bool:
    """Return whether this is a class of settings: a dataclass of this module's, or a pydantic model."""
    return isinstance(annotation, type) and issubclass(annotation, Settings | BaseModel)


def fields(section: type) -> Mapping[str, FieldInfo]:
    """Return the fields of a class of settings, by name: its own in their order, then those that it inherits."""
    declared: Mapping[str, FieldInfo] = (
        section.model_fields if issubclass(section, BaseModel) else section.__pydantic_fields__  # type: ignore[attr-defined]
    )
    return {name: declared[name] for name in sorted(declared, key=lambda name: name not in section.__annotations__)}


def sections(annotation: Any) -> Iterator[type]:
    """Yield the classes of settings in a type: those of `Training`, `Training | None`, `tuple[Training, ...]`."""
    if is_section(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from sections(part)


def _explanation(problem: ErrorDetails, section: type) -> str:
    """Return one problem as "key: got value, expected what"."""
    kind, place, given = problem["type"], problem["loc"], repr(problem["input"])
    keys: list[str] = []
    for part in map(str, place):  # beside keys a place has positions of items, and names of a union's members
        if part in fields(section):
            keys.append(part)
            section = next(sections(fields(section)[part].annotation), section)
    key = f"{'.'.join(keys)}: " if keys else ""
    if kind == "unexpected_keyword_argument":
        return f"{key}{place[-1]!r} is unknown; the keys are {suggest.choices(fields(section), place[-1])}"
    if kind == "missing":
        return f"{key}missing"
    if "error" in problem.get("ctx", {}):
        return f"{key}{problem['ctx']['error']}"
    shown = given if len(given) <= 80 else f"{given[:77]}..."
    return f"{key}got {shown}, expected {problem['msg'].removeprefix('Input should be ')}"
