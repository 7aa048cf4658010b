"""Base of a scenario's sections that are not settings of the library."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from fedpress.compression import settings


class Section(BaseModel):
    """Section of a file: no unknown keys, no silent conversions, finite numbers, read-only (`settings.STRICT`)."""

    model_config = settings.STRICT | ConfigDict(frozen=True)

    def changed(self, *keys: str) -> bool:
        """Whether one of these keys has another value than its default."""
        return any(getattr(self, key) != type(self).model_fields[key].default for key in keys)


def of_name(key: str) -> Any:
    """Return a function that turns a bare name into {key: name}, such as `encoder: stc` into {recipe: stc}."""

    def named(value: Any) -> Any:
        return {key: value} if isinstance(value, str) else value

    return named
