"""Version 1 of the download file, which is still read: int8 weights as safetensors behind zlib.

Layout, little-endian; lengths in bytes:

    | bytes | field |
    |---|---|
    | 4 | magic |
    | 1 | version, 1 |
    | 4 | length of the manifest as it stands in the file |
    | 4 | length of the weights as they stand in the file |
    | 4 | length of the weights before zlib |
    | 32 | SHA-256 of the 17 bytes before this field and of everything after it |
    | ... | manifest: zlib of JSON, a `Manifest` |
    | ... | weights: zlib of safetensors; of a quantized tensor the int8 codes, under its name, and the float32 scales |
    |     | of its channels, under its name + "/scales" |
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, Final

import numpy as np
import pydantic
import safetensors
from numpy.typing import NDArray

from fedpress.compression.coding.rans import CodeError
from fedpress.compression.models.bundles import manifest, weight_coding
from fedpress.compression.models.bundles.errors import ChecksumMismatch, InvalidWeights
from fedpress.compression.models.quantization import quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Quantized, Tensors

HEADER: Final = struct.Struct("<4sBIII")
SCALES: Final = "/scales"
DTYPES: Final = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "F32": np.float32,
}


class Manifest(manifest.Common):
    """What a student is, in version 1.

    Attributes:
        weights_sha256: Of the weights before zlib.
    """

    weights_sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$")


def read(text: bytes, coded: bytes, plain_bytes: int) -> tuple[manifest.Manifest, Tensors]:
    """Return the manifest, as one of the present version, and the tensors.

    Args:
        text: The manifest, unpacked.
        coded: The weights as they stand in the file.
        plain_bytes: Their length unpacked, as the header says.

    Raises:
        BundleError: One of its kinds for each fault.
    """
    said = manifest.validated(Manifest, text)
    try:
        plain = weight_coding.inflate(coded, plain_bytes)
    except CodeError as error:
        raise InvalidWeights(f"the weights: {error}") from error
    if hashlib.sha256(plain).hexdigest() != said.weights_sha256:
        raise ChecksumMismatch("the weights' SHA-256 is not the manifest's: the two are from different students")
    tensors = _tensors(plain)
    found = {name: quantized_tensor.shape_of(tensor) for name, tensor in tensors.items()}
    if found != said.shapes:
        odd = sorted(name for name in found.keys() | said.shapes.keys() if found.get(name) != said.shapes.get(name))
        raise InvalidWeights(
            f"the weights and the manifest's shapes differ in {odd}: expected the same tensors in both"
        )
    schemes = {name: manifest.text_of(weight_coding.scheme_of(tensor)) for name, tensor in tensors.items()}
    fields = said.model_dump(exclude={"weights_sha256"})
    return manifest.Manifest(**fields, schemes=schemes), tensors


def _tensors(plain: bytes) -> Tensors:
    try:
        entries = safetensors.deserialize(plain)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise InvalidWeights(f"the weights are not safetensors: {error}") from error
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in entries:
        if entry["dtype"] not in DTYPES:
            raise InvalidWeights(f"tensor {name!r} is {entry['dtype']}, expected one of {sorted(DTYPES)}")
        array = np.frombuffer(entry["data"], np.dtype(DTYPES[entry["dtype"]]).newbyteorder("<"))
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidWeights(f"tensor {name!r} holds NaN or infinity")
        arrays[name] = array.reshape(entry["shape"])
    tensors: Tensors = {}
    for name, array in arrays.items():
        if name.endswith(SCALES) and name.removesuffix(SCALES) in arrays:
            continue
        scales = arrays.get(name + SCALES)
        if scales is None:
            tensors[name] = array
        elif array.dtype != np.int8 or array.ndim < 2 or scales.dtype != np.float32 or scales.shape != array.shape[:1]:
            raise InvalidWeights(
                f"tensor {name!r}: codes {array.dtype} {array.shape} with scales {scales.dtype} {scales.shape},"
                " expected int8 codes and one float32 scale for each of their channels"
            )
        else:
            tensors[name] = Quantized(array.astype(np.int8), scales.astype(np.float32)[:, None])
    return tensors
