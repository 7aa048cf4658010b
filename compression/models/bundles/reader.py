"""Opening and verifying a bundle without torch, for devices that run the ONNX model of their student."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from fedpress.compression.models.bundles import container, weight_coding
from fedpress.compression.models.bundles import manifest as manifests
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
        onnx: Model for ONNX Runtime; None: the file has none.
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


def open_bundle(data: bytes, public_key: bytes | None = None) -> Bundle:
    """Verify and decode a bundle; `writer.rebuild` makes the model of it.

    Args:
        data: Bytes of the file.
        public_key: Ed25519 key that must have signed it, 32 bytes; None: a signature is not verified.

    Raises:
        BundleError: The file is faulty; `bundles.errors` lists a subclass for each fault.
    """
    parts = container.unpack(data, public_key)
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
