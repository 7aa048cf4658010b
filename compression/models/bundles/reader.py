"""A bundle verified and taken apart, without torch: all that a device needs which downloads its student and runs it."""

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
        manifest: What the student is.
        weights: Its tensors by name, quantized ones as codes and scales.
        sha256: Of the whole file.
        size: Of the whole file, in bytes.
        weights_bytes: Of the weights in it.
        format: Version of the file's format.
        forms: In which form each tensor stands in the file (`weight_coding.FORMS`).
        onnx: A model to run, for ONNX Runtime; None: the file has none.
        signed: Whether the file carries a signature. It was verified if a key was given.
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
    """Verify a bundle and take it apart; `writer.rebuild` makes the model of it.

    Args:
        data: The file.
        public_key: Ed25519, 32 bytes, of who must have signed it. None: whoever made it.

    Raises:
        BundleError: One of its kinds for each fault; `bundles.errors` lists them.
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
