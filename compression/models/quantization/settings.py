"""Settings of the quantization of a student's weights."""

from __future__ import annotations

from typing import Literal

from fedpress.compression.settings import ADVANCED, STRICT, Field, Settings, dataclass


@dataclass(frozen=True, config=STRICT)
class Quantization(Settings):
    """Quantization of a student's weights to small integers.

    Raises:
        ValueError: Settings contradict each other, or one is out of range.
    """

    bits: int = Field(default=8, ge=2, le=8, description="Bits of each weight.")
    group_size: int = Field(
        default=0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Weights of a channel, along its inputs, that share a scale; 0: all of them.",
    )
    rounding: Literal["nearest", "adaround", "gptq"] = Field(
        default="nearest",
        json_schema_extra=ADVANCED,
        description="nearest; adaround: up or down, whichever keeps the layers' answers to the proxy data; gptq: one"
        " input after another, the rest of a layer making up for each error. Embeddings are rounded to nearest.",
    )
    scale: Literal["largest", "least-squares"] = Field(
        default="largest",
        json_schema_extra=ADVANCED,
        description="largest: the largest weight is the largest code; least-squares: large weights are cut off where"
        " that makes the squared error smaller.",
    )
    sparsity: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        json_schema_extra=ADVANCED,
        description="Part of the weights that is set to zero first: the smallest of the whole model.",
    )
    qat_epochs: int = Field(
        default=0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Quantization-aware training: epochs of distillation with the weights rounded.",
    )
    onnx: bool = Field(default=False, description="Include an int8 ONNX model in the bundle.")

    def __post_init__(self) -> None:
        if self.qat_epochs and self.rounding != "nearest":
            raise ValueError(
                f"quantization-aware training chooses what each weight is rounded to, and so does {self.rounding}: set"
                " qat_epochs to 0, or rounding to nearest"
            )
