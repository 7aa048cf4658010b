"""Speed of a device: milliseconds for each unit of a model's cost (`cost`), as `fedpress probe` measures them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedpress.compression import files
from fedpress.compression.settings import ADVANCED, STRICT, Field, Settings, dataclass, fields


@dataclass(frozen=True, config=STRICT)
class DeviceSpeed(Settings):
    """Milliseconds for each unit of a `cost.Cost`, all of them >= 0.

    Raises:
        ValueError: A rate is below 0, or all are 0.
    """

    call_ms: float = Field(ge=0, json_schema_extra=ADVANCED, description="For each operation other than a convolution.")
    convolution_call_ms: float = Field(ge=0, json_schema_extra=ADVANCED, description="For each convolution.")
    convolution_ms: float = Field(ge=0, json_schema_extra=ADVANCED, description="For 10^6 FLOPs of convolutions.")
    matrix_ms: float = Field(ge=0, json_schema_extra=ADVANCED, description="For 10^6 other FLOPs.")
    moved_ms: float = Field(ge=0, json_schema_extra=ADVANCED, description="For 10^6 bytes read or written.")

    def __post_init__(self) -> None:
        if not any(self.rates):
            raise ValueError(
                f"the speed of a device is five rates >= 0, at least one above 0, got {self.rates}; `fedpress probe"
                " --json FILE` measures them"
            )

    @property
    def rates(self) -> tuple[float, ...]:
        """The five rates, in the order of the fields."""
        return tuple(getattr(self, name) for name in fields(DeviceSpeed))


def measured(value: Any) -> Any:
    """Replace the path of a file that `fedpress probe --json FILE` wrote by the speed in it.

    Args:
        value: A path, or anything else, which is returned as it is.

    Raises:
        ValueError: The file cannot be read or holds no speed.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(files.read_text(Path(value).expanduser()))["speed"]
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError("expected a file that `fedpress probe --json FILE` wrote, or its five rates") from None
