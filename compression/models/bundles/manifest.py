"""What a bundle says about the student that it carries."""

from __future__ import annotations

import re
from typing import Final

import pydantic

from fedpress.compression.models.bundles import weight_coding
from fedpress.compression.models.bundles.errors import InvalidManifest
from fedpress.compression.models.bundles.weight_coding import Scheme

Shape = tuple[int, ...]
TIER_NAME: Final = "[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""Tiers name files and folders."""
_QUANTIZED = re.compile(r"int([2-8]) by channel|int([2-8]) by ([1-9][0-9]{0,8})")


class Manifest(pydantic.BaseModel):
    """What a student is.

    Attributes:
        task: Name of the task whose model was pruned.
        tier: The class of devices that it is for.
        version: Of the global model that it was made from.
        parameters: How many it has.
        metrics: Figures of the making, such as accuracy on validation data; fractions.
        shapes: Of every tensor of the student, by name in its state dict.
        input_shape: Of one input, without the batch.
        input_dtype: Of the inputs, as torch writes it ("float32").
        output_shape: Of one answer, without the batch.
        architecture: One of the task's student architectures; None: the task's own model, cut down to `shapes`.
        schemes: How each tensor is written, in the order of writing: "int4 by channel" or "int4 by 64", the weights
            that share a scale; "float32", "int64" or so where it is not quantized.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    task: str
    tier: str = pydantic.Field(pattern=f"^{TIER_NAME}$")
    version: int = pydantic.Field(ge=0)
    parameters: int = pydantic.Field(ge=0)
    metrics: dict[str, float] = {}
    shapes: dict[str, Shape]
    input_shape: Shape
    input_dtype: str
    output_shape: Shape
    architecture: str | None = None
    schemes: dict[str, str]

    @pydantic.model_validator(mode="after")
    def _check(self) -> Manifest:
        if self.schemes.keys() != self.shapes.keys():
            odd = sorted(self.schemes.keys() ^ self.shapes.keys())
            raise ValueError(f"shapes and schemes differ in {odd}, expected the same tensors in both")
        for name, shape in self.shapes.items():
            scheme_of(shape, self.schemes[name])
        return self

    def tensor_schemes(self) -> dict[str, Scheme]:
        """The schemes with the shapes, in the order of writing."""
        return {name: scheme_of(self.shapes[name], text) for name, text in self.schemes.items()}


def text_of(scheme: Scheme) -> str:
    """A scheme without its shape, in words.

    >>> text_of(Scheme((8, 3), bits=4)), text_of(Scheme((8, 300), bits=4, group=64)), text_of(Scheme((8,), "float32"))
    ('int4 by channel', 'int4 by 64', 'float32')
    """
    return scheme.dtype or f"int{scheme.bits} by {scheme.group or 'channel'}"


def scheme_of(shape: Shape, text: str) -> Scheme:
    """The scheme of a tensor from its shape and its words; the inverse of `text_of`.

    Raises:
        ValueError: The text is not one of a tensor of that shape.
    """
    if min(shape, default=0) < 0:
        raise ValueError(f"a shape of {shape}")
    if text in weight_coding.DTYPES:
        return Scheme(shape, text)
    match = _QUANTIZED.fullmatch(text)
    if not match or len(shape) < 2:
        raise ValueError(f"{text!r} is no way to write a tensor of shape {shape}")
    return Scheme(shape, "", int(match[1] or match[2]), int(match[3] or 0))


def parse(text: bytes) -> Manifest:
    """Return the manifest that a JSON text is.

    Raises:
        InvalidManifest: It is not one.
    """
    try:
        return Manifest.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the JSON itself"
        raise InvalidManifest(
            f"the manifest is invalid at {where}: {first['msg']}; made by another program?"
        ) from error
