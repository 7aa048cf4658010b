"""Settings: frozen dataclasses that check themselves, in the library and as a section of a scenario's YAML alike.

A setting is declared once, beside what uses it: its type, bounds, default and description. A scenario embeds the class
of the library as it is; the commented file of `fedpress init` and the reference of keys are written from it.

>>> @dataclass(frozen=True, config=STRICT)
... class Decay(Settings):
...     rate: Fraction = Field(default=0.9, description="Weight of the past.")
...     steps: int = Field(default=1, ge=1, json_schema_extra=ADVANCED, description="Steps between two decays.")
>>> Decay(0.5).changed("rate", "steps"), list(fields(Decay))
(True, ['rate', 'steps'])
>>> Decay(rate=2)  # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
pydantic_core._pydantic_core.ValidationError: 1 validation error for Decay
rate
  Input should be less than or equal to 1 ...

Modules with settings that a scenario embeds import neither torch nor flwr: a scenario is read without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema

__all__ = [
    "ADVANCED", "STRICT", "Field", "Fraction", "Positive", "Settings", "dataclass", "fields", "is_section", "sections",
]  # fmt: skip

STRICT: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)
"""No unknown keys, no silent conversions (`rounds: "3"` is an error), finite numbers."""

ADVANCED: Final[JsonDict] = {"advanced": True}
"""`json_schema_extra` of a field that the reference has, and the commented file of `fedpress init` has not."""

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class Settings:
    """Base of settings; a subclass is decorated with `@dataclass(frozen=True, config=STRICT)`."""

    def changed(self, *keys: str) -> bool:
        """Whether one of these fields has another value than its default."""
        return any(getattr(self, key) != fields(type(self))[key].default for key in keys)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let a section of a file stand for the dataclass; its fields stay strict."""
        schema = handler(source)
        return {**schema, "strict": False} if schema["type"] == "dataclass" else schema


def is_section(annotation: Any) -> bool:
    """Whether this is a class of settings: a dataclass of this module's, or a pydantic model."""
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
