"""What can be wrong with a bundle, one class for each fault:

BundleError(FedpressError, ValueError)
├── Truncated              ends before its header or its body does
├── BadMagic               not a bundle at all
├── UnsupportedVersion     a version of the format that this build does not read
├── TooLarge               announces more than the limits allow
├── TrailingBytes          goes on after its end
├── ChecksumMismatch       damaged on the way
├── InvalidManifest        the manifest is not what its version writes
├── InvalidWeights         the weights do not decode, or are not what the manifest says
├── InvalidOnnx            the ONNX part does not decode
├── NotSigned              carries no signature, and one is asked for
├── WrongSignature         the signature is not of these bytes by that key
└── DoesNotFit             whole, but made for another task or model
"""

from __future__ import annotations

from fedpress.compression.errors import FedpressError


class BundleError(FedpressError, ValueError):
    """Bytes from elsewhere are not a student that this receiver can use."""


class Truncated(BundleError):
    """The file ends before its header, or before the body that its header announces."""


class BadMagic(BundleError):
    """The first four bytes are not those of a bundle."""


class UnsupportedVersion(BundleError):
    """The bundle is of a format version that this build does not read."""


class TooLarge(BundleError):
    """The file announces more than this build is willing to allocate."""


class TrailingBytes(BundleError):
    """The file goes on after the end that its header announces."""


class ChecksumMismatch(BundleError):
    """A SHA-256 does not fit the bytes: the file was damaged on the way."""


class InvalidManifest(BundleError):
    """The manifest is not the JSON that its version of the format writes."""


class InvalidWeights(BundleError):
    """The weights do not decode, or are not the tensors of the manifest."""


class InvalidOnnx(BundleError):
    """The ONNX part does not decode; whether it is a model is found out by who runs it."""


class NotSigned(BundleError):
    """A signature is asked for, and the bundle carries none."""


class WrongSignature(BundleError):
    """The signature is not one of these bytes by the key that was given."""


class DoesNotFit(BundleError):
    """The bundle is whole, but it was made for another task, or for another model of it."""
