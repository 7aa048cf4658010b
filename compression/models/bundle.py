"""The download file of a student: what it is, and its int8 weights, in one file that proves itself whole.

Layout, little-endian; lengths in bytes:

    | bytes | field |
    |---|---|
    | 4 | magic, 89 46 50 42 ("FPB" after a byte that text cannot hold) |
    | 1 | version of this format, 1 |
    | 4 | length of the manifest as it stands in the file |
    | 4 | length of the weights as they stand in the file |
    | 4 | length of the weights before zlib |
    | 32 | SHA-256 of the 17 bytes before this field and of everything after it |
    | ... | manifest: zlib of JSON, a `Manifest` |
    | ... | weights: zlib of safetensors; of a quantised tensor the int8 codes, under its name, and the float32 scales |
    |     | of its channels, under its name + "/scales" |

Of zlib only the Huffman code pays: int8 weights repeat nothing. On Fashion-MNIST it is within half a percent of the
codes' entropy, and shorter than xz.

The file is opened without running or unpickling anything that it carries: the architecture is a list of shapes that
the receiver's own model of the task is cut down to.

Errors, one for each fault:

    BundleError(FedpressError, ValueError)
    ├── Truncated              ends before its header or its body does
    ├── BadMagic               not a bundle at all
    ├── UnsupportedVersion     a version of the format that this build does not read
    ├── TooLarge               announces more than the limits allow
    ├── TrailingBytes          goes on after its end
    ├── ChecksumMismatch       damaged on the way
    ├── InvalidManifest        the manifest is not what this version writes
    ├── InvalidWeights         the weights do not decode, or are not what the manifest says
    └── DoesNotFit             whole, but made for another task or model
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from typing import Any, Final, NamedTuple

import numpy as np
import pydantic
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as safetensors_bytes
from torch import Tensor, nn

from fedpress.compression.errors import FedpressError
from fedpress.compression.models import architecture, quantize
from fedpress.compression.models.architecture import Shape
from fedpress.compression.models.determinism import reproducible
from fedpress.compression.models.quantize import Quantized, Tensors
from fedpress.compression.models.task import Task

MAGIC: Final = b"\x89FPB"
VERSION: Final = 1
MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_WEIGHTS_BYTES: Final = 1 << 28
MAX_INPUT_ENTRIES: Final = 1 << 24
HEADER: Final = struct.Struct("<4sBIII")
DIGEST_BYTES: Final = 32
ROOM_BYTES: Final = 256
"""What `largest_bytes` leaves for names and metrics in the manifest."""
TIER_NAME: Final = "[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""Tiers name files and folders."""
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

INPUT_DTYPES: Final = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64, torch.int64, torch.int32)
}


class BundleError(FedpressError, ValueError):
    """Bytes from elsewhere are not a student that this receiver can use."""


class Truncated(BundleError):
    """The file ends before its header, or before the body that its header announces."""


class BadMagic(BundleError):
    """The first four bytes are not those of a bundle."""


class UnsupportedVersion(BundleError):
    """The bundle is of a format version that this build does not read."""


class TooLarge(BundleError):
    """The header announces more than this build is willing to allocate."""


class TrailingBytes(BundleError):
    """The file goes on after the end that its header announces."""


class ChecksumMismatch(BundleError):
    """A SHA-256 does not fit the bytes: the file was damaged on the way."""


class InvalidManifest(BundleError):
    """The manifest is not the JSON that this version of the format writes."""


class InvalidWeights(BundleError):
    """The weights do not decode, or are not the tensors of the manifest."""


class DoesNotFit(BundleError):
    """The bundle is whole, but it was made for another task, or for another model of it."""


class Manifest(pydantic.BaseModel):
    """What a student is.

    Attributes:
        task: Name of the task whose model was pruned.
        tier: The class of devices that it is for.
        version: Of the global model that it was made from.
        parameters: How many it has.
        metrics: Figures of the making, such as accuracy on validation data; fractions.
        shapes: Of every tensor of the pruned model, by name in its state dict.
        input_shape: Of one input, without the batch.
        input_dtype: Of the inputs, as torch writes it ("float32").
        output_shape: Of one answer, without the batch.
        weights_sha256: Of the weights before coding.
        architecture: Name of the task's student architecture; None: its model, pruned.
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
    weights_sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$")
    architecture: str | None = None


class Bundle(NamedTuple):
    """An opened and verified bundle.

    Attributes:
        manifest: What the student is.
        weights: Its tensors by name, quantised ones as codes and scales.
        sha256: Of the whole file.
        size: Of the whole file, in bytes.
    """

    manifest: Manifest
    weights: Tensors
    sha256: str
    size: int


def save(
    student: nn.Module,
    weights: Tensors,
    example_input: Tensor,
    *,
    task: str,
    tier: str,
    version: int,
    metrics: dict[str, float],
    architecture: str | None = None,
) -> bytes:
    """Return the download file of a student: the same bytes for the same arguments.

    Args:
        student: The model, run once to note the shape of its answers.
        weights: Its tensors, as `quantize.quantize` gives them.
        example_input: A batch as the model is called with, (N, ...).
        task, tier, version, metrics, architecture: For the manifest.

    Raises:
        TooLarge: The student is beyond the limits of the format.
    """
    plain = _pack_weights(weights)
    manifest = Manifest(
        task=task,
        tier=tier,
        version=version,
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        metrics=metrics,
        shapes={name: _shape(tensor) for name, tensor in weights.items()},
        input_shape=tuple(example_input.shape[1:]),
        input_dtype=str(example_input.dtype).removeprefix("torch."),
        output_shape=_answer_shape(student, example_input[:1]),
        weights_sha256=hashlib.sha256(plain).hexdigest(),
        architecture=architecture,
    )
    text = manifest.model_dump_json(exclude_none=True).encode()
    if len(text) > MAX_MANIFEST_BYTES or len(plain) > MAX_WEIGHTS_BYTES:
        raise TooLarge(
            f"a manifest of {len(text):,} and weights of {len(plain):,} bytes: at most {MAX_MANIFEST_BYTES:,} and"
            f" {MAX_WEIGHTS_BYTES:,} are allowed; a bundle is for a small model"
        )
    packed, coded = _deflate(text), _deflate(plain)
    head = HEADER.pack(MAGIC, VERSION, len(packed), len(coded), len(plain))
    return head + hashlib.sha256(head + packed + coded).digest() + packed + coded


def largest_bytes(student: nn.Module, example_input: Tensor) -> int:
    """The most that a student's file will come to, whatever its weights turn out to be, in bytes.

    It is the length of a real file, filled with noise that no entropy code shortens, and room for names and metrics.
    """
    draw = np.random.default_rng(0)
    noise: Tensors = {}
    for name, tensor in quantize.quantize(student).items():
        if isinstance(tensor, Quantized):
            codes = draw.integers(-quantize.LEVELS, quantize.LEVELS, tensor.codes.shape, np.int8, endpoint=True)
            noise[name] = Quantized(codes, draw.random(len(codes), np.float32))
        else:
            noise[name] = draw.random(tensor.shape, np.float32).astype(tensor.dtype)
    return len(save(student, noise, example_input, task="", tier="x", version=0, metrics={})) + ROOM_BYTES


def open_bundle(data: bytes) -> Bundle:
    """Verify a bundle and take it apart; `rebuild` makes the model of it.

    Raises:
        BundleError: One of its kinds for each fault; the module's docstring lists them.
    """
    packed, coded, plain_bytes = _verified(data)
    text = _inflate(packed, MAX_MANIFEST_BYTES, InvalidManifest)
    try:
        manifest = Manifest.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the JSON itself"
        raise InvalidManifest(
            f"the manifest is invalid at {where}: {first['msg']}; made by another program?"
        ) from error
    plain = _inflate(coded, plain_bytes, InvalidWeights)
    if len(plain) != plain_bytes:
        raise InvalidWeights(f"the weights are {len(plain):,} bytes, the header announces {plain_bytes:,}")
    if hashlib.sha256(plain).hexdigest() != manifest.weights_sha256:
        raise ChecksumMismatch("the weights' SHA-256 is not the manifest's: the two are from different students")
    weights = _unpack_weights(plain)
    found = {name: _shape(tensor) for name, tensor in weights.items()}
    if found != manifest.shapes:
        odd = sorted(
            name for name in found.keys() | manifest.shapes.keys() if found.get(name) != manifest.shapes.get(name)
        )
        raise InvalidWeights(
            f"the weights and the manifest's shapes differ in {odd}: expected the same tensors in both"
        )
    return Bundle(manifest, weights, hashlib.sha256(data).hexdigest(), len(data))


def rebuild(bundle: Bundle, task: Task) -> nn.Module:
    """Return the student, in evaluation mode, with its weights dequantised.

    A fresh model of the task, or its student architecture of the manifest's name, is cut down to the manifest's shapes,
    filled, and run once on zeros. Torch's generator is left as it was.

    Raises:
        DoesNotFit: The bundle is of another task or an architecture that this task does not have, or its shapes are not
            those of a pruned version of the model.
    """
    manifest = bundle.manifest
    if manifest.task != task.name:
        raise DoesNotFit(
            f"the bundle is of task {manifest.task!r}, expected {task.name!r}: was the wrong file fetched?"
        )
    if manifest.input_dtype not in INPUT_DTYPES or min(manifest.input_shape, default=1) < 1:
        raise DoesNotFit(f"inputs of {manifest.input_dtype} {manifest.input_shape}: no model takes such")
    if math.prod(manifest.input_shape) > MAX_INPUT_ENTRIES:
        raise DoesNotFit(f"inputs of shape {manifest.input_shape} have more than {MAX_INPUT_ENTRIES:,} entries")
    known = task.students()
    make = task.model if manifest.architecture is None else known.get(manifest.architecture)
    if make is None:
        raise DoesNotFit(
            f"task {task.name!r} has no student architecture {manifest.architecture!r}, it has"
            f" {', '.join(known) or 'none'}: made by a newer version of the task?"
        )
    with reproducible(0):
        model = make().eval()
        try:
            architecture.shrink(model, manifest.shapes)
            quantize.load(model, bundle.weights)
            example = torch.zeros((1, *manifest.input_shape), dtype=INPUT_DTYPES[manifest.input_dtype])
            answer = _answer_shape(model, example)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise DoesNotFit(
                f"the student does not fit the model of task {task.name!r}: {error}; has that model changed since?"
            ) from error
    if answer != manifest.output_shape:
        raise DoesNotFit(f"the rebuilt student answers {answer}, the manifest says {manifest.output_shape}")
    return model


def _verified(data: bytes) -> tuple[bytes, bytes, int]:
    """Check all that needs no decoding; return manifest and weights as they stand, and the plain length of these."""
    start = HEADER.size + DIGEST_BYTES
    if not MAGIC.startswith(data[: len(MAGIC)]):
        raise BadMagic(
            f"the file begins with {data[: len(MAGIC)]!r}, a bundle with {MAGIC!r}: is this another kind of file?"
        )
    if len(data) < start:
        raise Truncated(f"{len(data)} bytes, but the header alone has {start}: was the download cut off?")
    _, version, manifest_bytes, coded_bytes, plain_bytes = HEADER.unpack_from(data)
    if version != VERSION:
        raise UnsupportedVersion(f"format version {version}, expected {VERSION}: made by a newer fedpress?")
    if manifest_bytes > MAX_MANIFEST_BYTES or max(coded_bytes, plain_bytes) > MAX_WEIGHTS_BYTES:
        raise TooLarge(
            f"announces a manifest of {manifest_bytes:,} bytes, weights of {coded_bytes:,} ({plain_bytes:,} decoded):"
            f" at most {MAX_MANIFEST_BYTES:,} and {MAX_WEIGHTS_BYTES:,} are allowed; is the header damaged?"
        )
    end = start + manifest_bytes + coded_bytes
    if len(data) < end:
        raise Truncated(f"{len(data):,} bytes, but the header announces {end:,}: was the download cut off?")
    if len(data) > end:
        raise TrailingBytes(f"{len(data):,} bytes, but the header announces {end:,}: were two files joined?")
    digest = hashlib.sha256(data[: HEADER.size])
    digest.update(data[start:])
    if digest.digest() != data[HEADER.size : start]:
        raise ChecksumMismatch("the file's SHA-256 is not the one in its header: damaged on the way; download it again")
    return data[start : start + manifest_bytes], data[start + manifest_bytes :], plain_bytes


def _deflate(plain: bytes) -> bytes:
    """The shorter of zlib's default and its Huffman code alone."""
    huffman = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return min(zlib.compress(plain, 9), huffman.compress(plain) + huffman.flush(), key=len)


def _inflate(coded: bytes, most: int, fault: type[BundleError]) -> bytes:
    """Decompress at most `most` bytes: a small file must not fill the memory."""
    decoder = zlib.decompressobj()
    try:
        plain = decoder.decompress(coded, most + 1)
    except zlib.error as error:
        raise fault(f"not a zlib stream: {error}") from error
    if len(plain) > most or not decoder.eof or decoder.unused_data:
        raise fault(f"the zlib stream does not end at its {len(coded):,} bytes, or holds more than {most:,}")
    return plain


def _pack_weights(weights: Tensors) -> bytes:
    arrays: dict[str, NDArray[Any]] = {}
    for name, tensor in weights.items():
        if isinstance(tensor, Quantized):
            arrays[name], arrays[name + SCALES] = tensor.codes, tensor.scales
        else:
            arrays[name] = tensor
    packed: bytes = safetensors_bytes({name: np.asarray(array, order="C") for name, array in arrays.items()})
    return packed


def _unpack_weights(plain: bytes) -> Tensors:
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
    weights: Tensors = {}
    for name, array in arrays.items():
        if name.endswith(SCALES) and name.removesuffix(SCALES) in arrays:
            continue
        scales = arrays.get(name + SCALES)
        if scales is None:
            weights[name] = array
        elif array.dtype != np.int8 or array.ndim < 2 or scales.dtype != np.float32 or scales.shape != array.shape[:1]:
            raise InvalidWeights(
                f"tensor {name!r}: codes {array.dtype} {array.shape} with scales {scales.dtype} {scales.shape},"
                " expected int8 codes and one float32 scale for each of their channels"
            )
        else:
            weights[name] = Quantized(array.astype(np.int8), scales.astype(np.float32))
    return weights


def _shape(tensor: Quantized | NDArray[Any]) -> Shape:
    return tuple(tensor.codes.shape if isinstance(tensor, Quantized) else tensor.shape)


def _answer_shape(model: nn.Module, example: Tensor) -> Shape:
    """Shape of one answer, without the batch, in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        answer = model(example)
    for module, training in modes.items():
        module.training = training
    return tuple(answer.shape[1:])
