"""Opening and verifying a bundle without torch, for devices that run the ONNX model of their student."""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from fedpress.compression.models.bundles import container, weight_coding
from fedpress.compression.models.bundles import manifest as manifests
from fedpress.compression.models.bundles.errors import TooLarge
from fedpress.compression.models.bundles.manifest import Manifest
from fedpress.compression.models.quantization.quantized_tensor import Tensors


class Bundle(NamedTuple):
    """An opened and verified bundle.

    Attributes:
        manifest: Description of the student.
        weights: Tensors by name, quantized ones as codes and scales.
        sha256: SHA-256 of the file, in hexadecimal.
        size: Size of the file, in bytes.
        weights_bytes: Size of the weights in it, in bytes.
        format: Version of the file's format.
        forms: Form of each tensor in the file, by name (`weight_coding.FORMS`).
        onnx: Model for ONNX Runtime, which `onnx_weights.filled` makes whole; None: the file has none.
        signed: Whether the file carries a signature, which was verified if a key was given.
    """

    manifest: Manifest
    weights: Tensors
    sha256: str
    size: int
    weights_bytes: int
    format: int
    forms: dict[str, str]
    onnx: bytes | None
    signed: bool


ONNX_BYTES: Final = 16
"""Most bytes of an ONNX model for each entry of the student's tensors: float32 weights, some of them more than once."""
GRAPH_BYTES: Final = 1 << 26
"""Bytes allowed besides, for the graph."""


def open_bundle(data: bytes, public_key: bytes | None = None, limit: int = container.LIMIT) -> Bundle:
    """Verify and decode a bundle; `writer.rebuild` makes the model of it.

    Args:
        data: Bytes of the file.
        public_key: Ed25519 key that must have signed it, 32 bytes; None: a signature is not verified.
        limit: Most bytes that this device takes: of the file, of its tensors decoded, and of its ONNX model.

    Raises:
        BundleError: The file is faulty; `bundles.errors` lists a subclass for each fault.
    """
    parts = container.unpack(data, public_key, limit, lambda text, weights, onnx: _check(text, weights, onnx, limit))
    manifest = manifests.parse(parts.manifest)
    tensors, forms = weight_coding.unpack(parts.weights, manifest.tensor_schemes())
    return Bundle(
        manifest=manifest,
        weights=tensors,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        weights_bytes=len(parts.weights),
        format=parts.format,
        forms=forms,
        onnx=parts.onnx or None,
        signed=parts.signed,
    )


def _check(text: bytes, weights_bytes: int, onnx_bytes: int, limit: int) -> None:
    """Check that the sizes of a file's parts may be those of the student that its manifest describes.

    Args:
        text: Manifest.
        weights_bytes: Bytes of the weights in the file.
        onnx_bytes: Bytes of the ONNX model, decoded.
        limit: Most bytes of the tensors decoded.

    Raises:
        InvalidManifest: The manifest does not parse.
        TooLarge: A part is larger than any such student's, or the tensors are larger than the limit.
    """
    schemes = manifests.parse(text).tensor_schemes()
    longest, decoded = weight_coding.longest_bytes(schemes), weight_coding.decoded_bytes(schemes)
    if decoded > limit:
        raise TooLarge(
            f"the manifest names tensors of {decoded:,} bytes, and at most {limit:,} are taken here: if this is the"
            " right student, allow more (--largest-mib)"
        )
    if weights_bytes > longest:
        raise TooLarge(f"weights of {weights_bytes:,} bytes: the tensors of the manifest take at most {longest:,}")
    most = GRAPH_BYTES + ONNX_BYTES * weight_coding.entries(schemes)
    if onnx_bytes > most:
        raise TooLarge(f"an ONNX model of {onnx_bytes:,} bytes: one of the manifest's tensors has at most {most:,}")
