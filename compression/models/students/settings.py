"""Settings of a student's budget, and of the search for the best student within it."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator

from fedpress.compression.models.device_speed import DeviceSpeed, measured
from fedpress.compression.settings import ADVANCED, STRICT, Field, Positive, Settings, dataclass

UNITS: Final = {
    "parameters": "parameters",
    "bundle_bytes": "bundle bytes",
    "flops": "FLOPs a forward pass",
    "memory_bytes": "bytes of memory at run time",
    "latency_ms": "ms a forward pass on the device measured",
    "removed_fraction": "of the parameters removed",
}
"""Kinds of budgets, by their fields, and their units."""


Inherit = Literal["by-name", "every-second"] | dict[str, str]
"""What a student of another architecture takes over from its teacher (`inheritance`)."""


def _count_or_fraction(given: Any) -> Any:
    whole, part = type(given) is int and given >= 1, type(given) is float and 0 < given <= 1
    if given is not None and not (whole or part):
        raise ValueError("expected a whole number >= 1, or a fraction of the global model's, 0 < fraction <= 1")
    return given


def blocks(given: Any) -> Any:
    """Check the blocks that a student keeps.

    Raises:
        ValueError: They are neither a number >= 1 nor a fraction in (0, 1].
    """
    if given is not None and not (type(given) is int and given >= 1 or type(given) is float and 0 < given <= 1):
        raise ValueError("expected a number of blocks >= 1, or a fraction of them, 0 < fraction <= 1")
    return given


def inherits(given: Any) -> Any:
    """Check what a student inherits.

    Raises:
        ValueError: It is none of the words, and no map of names.
    """
    named = isinstance(given, dict) and given and all(isinstance(name, str) for pair in given.items() for name in pair)
    if given is not None and given not in ("by-name", "every-second") and not named:
        raise ValueError("expected by-name, every-second, or a map of the student's names to the global model's")
    return given


def _fraction_or_auto(given: Any) -> Any:
    if given is not None and given != "auto" and not (type(given) is float and 0 < given < 1):
        raise ValueError("expected a part of the parameters, 0 < removed_fraction < 1, or auto")
    return given


@dataclass(frozen=True, config=STRICT)
class Budget(Settings):
    """Budget of a student, of one of six kinds; a fraction is of its teacher's parameters.

    >>> Budget(parameters=0.25).kind
    'parameters'
    >>> Budget(parameters=0.25, flops=20_000)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: Budget: give one budget out of parameters, ...; got parameters and flops

    Raises:
        ValueError: None is given, or more than one, or one is out of range.
    """

    parameters: Annotated[int | float | None, BeforeValidator(_count_or_fraction)] = Field(
        default=None, description="Largest number of parameters: a whole number, or a fraction of the global model's."
    )
    bundle_bytes: int | None = Field(default=None, ge=1, description="Largest size of the download file, in bytes.")
    flops: int | None = Field(
        default=None, ge=1, description="Most floating-point operations of a forward pass of one example."
    )
    memory_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Most bytes of weights and activations at run time, one example at a time.",
    )
    removed_fraction: Annotated[float | Literal["auto"] | None, BeforeValidator(_fraction_or_auto)] = Field(
        default=None,
        description="Fraction of the parameters to remove, as in `prune`; auto: the largest within its tolerance.",
    )
    latency_ms: Positive | None = Field(
        default=None, description="Largest predicted latency of one example on `device`, in milliseconds."
    )
    device: Annotated[DeviceSpeed | None, BeforeValidator(measured)] = Field(
        default=None,
        description="For latency_ms: a file that `fedpress probe SCENARIO --json FILE` wrote on it, or its rates.",
    )

    def __post_init__(self) -> None:
        given = [kind for kind in UNITS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give one budget out of {', '.join(UNITS)}; got {' and '.join(given) or 'none'}")
        if (self.device is None) != (self.latency_ms is None):
            raise ValueError("latency_ms and device go together; `fedpress probe --json FILE` measures a device")

    @property
    def kind(self) -> str:
        """Kind of the budget, a key of `UNITS`."""
        return next(kind for kind in UNITS if getattr(self, kind) is not None)


@dataclass(frozen=True, config=STRICT)
class Search(Settings):
    """Search for the best student within a budget.

    Raises:
        ValueError: There are more finalists than candidates, or a value is out of range.
    """

    candidates: int = Field(
        default=24, ge=1, description="Architectures that are scored without training, over all starts."
    )
    finalists: int = Field(
        default=8,
        ge=1,
        description="Candidates that are distilled, by successive halving on validation data; it takes about"
        " log2(finalists) times as long as the distillation of one student.",
    )
    score: Literal["synflow", "naswot", "gradient_norm", "agreement"] = Field(
        default="synflow",
        json_schema_extra=ADVANCED,
        description="Score that ranks the candidates.",
    )
    spread: float = Field(
        default=2.0,
        ge=1,
        json_schema_extra=ADVANCED,
        description="Variation of widths between layers: exponents between 1 / spread and spread; 1: uniform.",
    )
    architectures: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="Student architectures of the task, such as mlp, that take part besides the global model.",
    )

    def __post_init__(self) -> None:
        if self.finalists > self.candidates:
            raise ValueError(f"finalists: got {self.finalists}, expected at most candidates, {self.candidates}")
