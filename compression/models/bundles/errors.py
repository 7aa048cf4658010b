"""Faults of a bundle, one class for each.

BundleError(FedpressError, ValueError)
├── TruncatedBundle        ends before its header or its body does
├── BadBundleMagic         not a bundle
├── UnsupportedBundleVersion  a version of the format that this build does not read
├── TooLarge               announces more than the limits allow
├── TrailingBytes          continues after its end
├── BundleChecksumMismatch damaged in transit
├── InvalidManifest        the manifest does not parse
├── InvalidWeights         the weights do not decode, or contradict the manifest
├── InvalidOnnx            the ONNX part does not decode
├── NotSigned              carries no signature, but one is required
├── WrongSignature         the signature is not by the required key
├── NoBase                 intact, but the pretrained weights that it builds on are not here, or are other ones
└── DoesNotFit             intact, but made for another task or model
"""

from __future__ import annotations

from fedpress.compression.errors import FedpressError


class BundleError(FedpressError, ValueError):
    """The bytes are not a student that this receiver can use."""


class TruncatedBundle(BundleError):
    """The file ends before its header, or before the body that its header announces."""


class BadBundleMagic(BundleError):
    """The first four bytes are not those of a bundle."""


class UnsupportedBundleVersion(BundleError):
    """The bundle is of a format version that this build does not read."""


class TooLarge(BundleError):
    """The file announces more than the limits allow to allocate."""


class TrailingBytes(BundleError):
    """The file continues after the end that its header announces."""


class BundleChecksumMismatch(BundleError):
    """The SHA-256 does not match the bytes: the file was damaged in transit."""


class InvalidManifest(BundleError):
    """The manifest is not valid JSON of its version of the format."""


class InvalidWeights(BundleError):
    """The weights do not decode, or contradict the manifest."""


class InvalidOnnx(BundleError):
    """The ONNX part does not decode; whether it is a model is checked by `onnx_runtime`."""


class NotSigned(BundleError):
    """A signature is required, but the bundle carries none."""


class WrongSignature(BundleError):
    """The signature is not one of these bytes by the given key."""


class DoesNotFit(BundleError):
    """The bundle is intact, but was made for another task, or for another model of it."""


class NoBase(BundleError):
    """The bundle holds what was trained alone, and the pretrained weights beside it are absent or other ones."""
