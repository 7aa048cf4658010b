"""How fast a device is: the price of each unit of what a model costs, as `fedpress probe` measures it (`cost`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedpress.compression.settings import ADVANCED, STRICT, Field, Settings, dataclass, fields


@dataclass(frozen=True, config=STRICT)
class DeviceSpeed(Settings):
    """Milliseconds for each unit of a `cost.Cost`, none below 0.

    Raises:
        ValueError: A rate is below 0, or all are 0.
    """

    call_ms: float = Field(ge=0, json_schema_extra=ADVANCED, description="For each operation that is no convolution.")
    convolution_call_ms: float = Field(ge=0, json_schema_extra=ADVANCED, description="For each that is one.")
    convolution_ms: float = Field(ge=0, json_schema_extra=ADVANCED, description="For 10^6 FLOPs of convolutions.")
    matrix_ms: float = Field(ge=0, json_schema_extra=ADVANCED, description="For 10^6 other FLOPs.")
    moved_ms: float = Field(ge=0, json_schema_extra=ADVANCED, description="For 10^6 bytes that are read or written.")

    def __post_init__(self) -> None:
        if not any(self.rates):
            raise ValueError(
                f"the speed of a device is five numbers >= 0, one of them above 0, got {self.rates}; `fedpress probe"
                " --json FILE` measures them"
            )

    @property
    def rates(self) -> tuple[float, ...]:
        """The five numbers, in the order of the fields."""
        return tuple(getattr(self, name) for name in fields(DeviceSpeed))


def measured(value: Any) -> Any:
    """Read the speed from a file that `fedpress probe --json FILE` wrote, in place of its path.

    Args:
        value: A path, or anything else, which is handed back.

    Raises:
        ValueError: The file is no such one.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(Path(value).expanduser().read_text(encoding="utf-8"))["speed"]
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError("expected a file that `fedpress probe --json FILE` wrote, or its five rates") from None
