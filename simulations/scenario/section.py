"""What all sections of a scenario have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Common rules: no unknown keys, no silent conversions (`rounds: "3"` is an error), finite numbers, read-only."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_default=True)

    def changed(self, *keys: str) -> bool:
        """Whether one of these keys has another value than its default."""
        return any(getattr(self, key) != type(self).model_fields[key].default for key in keys)


Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]


def of_name(key: str) -> Any:
    """Return a function that makes {key: name} of a bare name: `encoder: stc` is {recipe: stc}."""

    def named(value: Any) -> Any:
        return {key: value} if isinstance(value, str) else value

    return named
