"""Manifest of a bundle: the description of its student, as JSON."""

from __future__ import annotations

import math
import re
from typing import Annotated, Final

import pydantic

from fedpress.compression.models.bundles import weight_coding
from fedpress.compression.models.bundles.errors import InvalidManifest
from fedpress.compression.models.bundles.weight_coding import TensorScheme

MAX_DIMENSIONS: Final = 32
"""Most dimensions of a tensor, as many as every NumPy can have."""
MAX_SIZE: Final = (1 << 31) - 1
"""Most entries along a dimension."""
MAX_ENTRIES: Final = 1 << 40
"""Most entries of a tensor; how many a file of its size may hold, `weight_coding` says."""
MAX_NUMBER: Final = (1 << 63) - 1
Size = Annotated[int, pydantic.Field(ge=0, le=MAX_SIZE)]
FreeShape = Annotated[tuple[Size | None, ...], pydantic.Field(max_length=MAX_DIMENSIONS)]
Shape = Annotated[tuple[Size, ...], pydantic.Field(max_length=MAX_DIMENSIONS)]
Sha256 = Annotated[str, pydantic.Field(pattern="^[0-9a-f]{64}$")]
TIER_NAME: Final = "[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""Pattern of a tier's name, which names files and folders."""
_QUANTIZED = re.compile(r"int([2-8]) by channel|int([2-8]) by ([1-9][0-9]{0,8})")


class Input(pydantic.BaseModel):
    """Form of an input that has a name.

    Attributes:
        shape: Shape of one, without the batch; null: any size, such as the length of a sequence.
        dtype: Dtype in torch's words ("int64").
        value: Value that an example may consist of, such as a token that exists, and 1 of a mask.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    shape: FreeShape
    dtype: str
    value: float = 0.0


class Base(pydantic.BaseModel):
    """Pretrained weights that a bundle needs beside it (`bases`).

    Attributes:
        sha256: SHA-256 of the files, as `safetensors_files.sha256` returns it.
        tensors: Name in the files of each tensor of the student that is there, by its name in the state dict.
        whole: SHA-256 of all tensors of the student, as `bases.digest` returns it.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    sha256: Sha256
    tensors: Annotated[dict[str, str], pydantic.Field(min_length=1)]
    whole: Sha256


class Manifest(pydantic.BaseModel):
    """Description of a student.

    Attributes:
        task: Name of the task.
        tier: Name of the class of devices that the student is for.
        version: Version of the global model that it was made from.
        parameters: Number of parameters.
        metrics: Figures such as accuracy on validation data, as fractions.
        shapes: Shape of every tensor, by name in the state dict.
        sizes: Numbers that pruning changed beside the tensors, such as that of heads, by path and name of the
            attribute; None: none.
        input_shape: Shape of one input, without the batch; None: inputs have names.
        input_dtype: Dtype of the inputs in torch's words ("float32"); None: inputs have names.
        inputs: Inputs by the name of the model's argument; None: the input is one tensor.
        output_shape: Shape of one output, without the batch; null: as long as the input's sequences.
        class_axis: Axis of the outputs (N, ...) along which the largest is that of the class: 2 for sequences
            (N, L, classes); 0: outputs are no logits of classes; None: 1.
        architecture: One of the task's student architectures; None: the task's own model, cut down to `shapes`.
        schemes: Encoding of each tensor, in the order of writing: "int4 by channel", "int4 by 64" where 64 weights
            share a scale, or the dtype ("float32", "int64") where the tensor is not quantized.
        base: Pretrained weights with all tensors that are not in `shapes`; None: the file has all of them.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    task: str
    tier: str = pydantic.Field(pattern=f"^{TIER_NAME}$")
    version: int = pydantic.Field(ge=0, le=MAX_NUMBER)
    parameters: int = pydantic.Field(ge=0, le=MAX_NUMBER)
    metrics: dict[str, float] = {}
    shapes: dict[str, Shape]
    sizes: dict[str, Annotated[int, pydantic.Field(ge=1, le=MAX_SIZE)]] | None = None
    input_shape: Shape | None = None
    input_dtype: str | None = None
    inputs: Annotated[dict[str, Input], pydantic.Field(min_length=1, max_length=64)] | None = None
    output_shape: FreeShape
    class_axis: int | None = pydantic.Field(default=None, ge=0, le=16)
    architecture: str | None = None
    schemes: dict[str, str]
    base: Base | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Manifest:
        if self.schemes.keys() != self.shapes.keys():
            unmatched = sorted(self.schemes.keys() ^ self.shapes.keys())
            raise ValueError(f"shapes and schemes differ in {unmatched}, expected the same tensors in both")
        if (self.inputs is None) != (self.input_shape is not None) or (self.inputs is None) != (
            self.input_dtype is not None
        ):
            raise ValueError("expected input_shape and input_dtype, or inputs, and not both")
        for name, shape in self.shapes.items():
            scheme_of(shape, self.schemes[name])
        if self.base and (twice := sorted(self.base.tensors.keys() & self.shapes.keys())):
            raise ValueError(f"{twice} are in the file and in the base, expected each tensor in one of them")
        return self

    def tensor_schemes(self) -> dict[str, TensorScheme]:
        """Return the scheme of each tensor by name, in the order of writing."""
        return {name: scheme_of(self.shapes[name], text) for name, text in self.schemes.items()}


def text_of(scheme: TensorScheme) -> str:
    """Return the words for a scheme, which leave out its shape.

    >>> text_of(TensorScheme((8, 3), bits=4)), text_of(TensorScheme((8, 300), bits=4, group=64))
    ('int4 by channel', 'int4 by 64')
    """
    return scheme.dtype or f"int{scheme.bits} by {scheme.group or 'channel'}"


def scheme_of(shape: Shape, text: str) -> TensorScheme:
    """Return the scheme of a tensor; the inverse of `text_of`.

    Args:
        shape: Shape of the tensor.
        text: Words for the scheme, as `text_of` returns them.

    Raises:
        ValueError: The text is no scheme for a tensor of this shape.
    """
    if min(shape, default=0) < 0:
        raise ValueError(f"a shape of {shape}, expected sizes of at least 0")
    if math.prod(max(1, size) for size in shape) > MAX_ENTRIES:  # NumPy refuses these also where a size is 0
        raise ValueError(f"a shape of {shape}, expected at most {MAX_ENTRIES:,} entries")
    if text in weight_coding.DTYPES:
        return TensorScheme(shape, text)
    match = _QUANTIZED.fullmatch(text)
    if not match or len(shape) < 2:
        raise ValueError(f"{text!r} is no scheme for a tensor of shape {shape}, expected one such as 'int4 by 64'")
    return TensorScheme(shape, "", int(match[1] or match[2]), int(match[3] or 0))


def parse(text: bytes) -> Manifest:
    """Parse the JSON text of a manifest.

    Raises:
        InvalidManifest: The text is no valid manifest.
    """
    try:
        return Manifest.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the JSON itself"
        raise InvalidManifest(
            f"the manifest is invalid at {where}: {first['msg']}; made by another program?"
        ) from error
