"""Container format of a bundle: a header of lengths, a checksum, three parts, and an optional signature.

Layout of version 2, little-endian; lengths in bytes:

    | bytes | field |
    |---|---|
    | 4 | magic, 89 46 50 42 ("FPB" after a byte that text cannot hold) |
    | 1 | version of this format, 2 |
    | 4 | length of the manifest in the file |
    | 4 | length of the weights |
    | 4 | length of the ONNX part in the file; 0: there is none |
    | 4 | length of the ONNX part before zlib |
    | 1 | 1: a signature ends the file; 0: there is none |
    | 32 | SHA-256 of the 22 bytes before this field and of everything after it |
    | ... | manifest: zlib of JSON, a `Manifest` |
    | ... | weights: as in `weight_coding` |
    | ... | ONNX: zlib of a model to run (`onnx_export`), without weights that are in the file (`onnx_weights`) |
    | 64 | signature, if there is one: Ed25519 of the 22 bytes and of manifest, weights and ONNX as in the file |

Sizes are checked before anything is allocated: lengths against that of the file, the file and the ONNX model in it
against what this device takes (`LIMIT`, its own choice), the ONNX model against what zlib can make of its stream, and
weights and ONNX against the tensors of the manifest (`reader`).

The SHA-256 detects damage. Authenticity needs a signature and a public key from a trusted source. Ed25519:
S. Josefsson, I. Liusvaara, RFC 8032, 2017.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedpress.compression.models.bundles.errors import (
    BadBundleMagic,
    BundleChecksumMismatch,
    InvalidManifest,
    InvalidOnnx,
    NotSigned,
    TooLarge,
    TrailingBytes,
    TruncatedBundle,
    UnsupportedBundleVersion,
    WrongSignature,
)

MAGIC: Final = b"\x89FPB"
VERSION: Final = 2
MAX_MANIFEST_BYTES: Final = 1 << 20
LIMIT: Final = 1 << 30
"""Bytes of a file, and of what is decoded from it, that a device takes where it is not told otherwise."""
MAX_RATIO: Final = 1032
"""Largest compression of zlib."""
HEADER: Final = struct.Struct("<4sBIIIIB")
DIGEST_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
MAX_PART_BYTES: Final = (1 << 32) - 1
"""Most bytes of a part: lengths are 4 bytes."""
MAX_BYTES: Final = HEADER.size + DIGEST_BYTES + MAX_MANIFEST_BYTES + 2 * MAX_PART_BYTES + SIGNATURE_BYTES
"""Most bytes of a file in this format."""

Check = Callable[[bytes, int, int], None]
"""Raises a `BundleError` unless a manifest allows that many bytes of weights, and of ONNX."""


class Parts(NamedTuple):
    """Parts of a file whose lengths, checksum and signature have been verified.

    Attributes:
        format: Version of the format.
        manifest: JSON, decompressed.
        weights: Weights, a view of the file.
        onnx: ONNX model, decompressed; empty if there is none.
        signed: Whether there is a signature.
    """

    format: int
    manifest: bytes
    weights: memoryview
    onnx: bytes
    signed: bool


def pack(manifest: bytes, weights: bytes, onnx: bytes = b"", private_key: bytes | None = None) -> bytes:
    """Return the bytes of a bundle.

    Args:
        manifest: JSON.
        weights: Weights, as `weight_coding.pack` returns them.
        onnx: ONNX model; empty: none.
        private_key: Ed25519 key to sign with, 32 bytes; None: no signature.

    Raises:
        TooLarge: A part exceeds the limits of the format.
    """
    if len(manifest) > MAX_MANIFEST_BYTES or max(len(weights), len(onnx)) > MAX_PART_BYTES:
        raise TooLarge(
            f"a manifest of {len(manifest):,}, weights of {len(weights):,} and ONNX of {len(onnx):,} bytes: at most"
            f" {MAX_MANIFEST_BYTES:,}, {MAX_PART_BYTES:,} and {MAX_PART_BYTES:,} have room in the format"
        )
    packed, deflated = zlib.compress(manifest, 9), zlib.compress(onnx, 9) if onnx else b""
    signed = private_key is not None
    head = HEADER.pack(MAGIC, VERSION, len(packed), len(weights), len(deflated), len(onnx), signed)
    body = packed + weights + deflated
    if private_key is not None:
        body += Ed25519PrivateKey.from_private_bytes(private_key).sign(head + body)
    return head + hashlib.sha256(head + body).digest() + body


def unpack(data: bytes, public_key: bytes | None = None, limit: int = LIMIT, check: Check = lambda *_: None) -> Parts:
    """Verify the bytes of a bundle and return its parts.

    Args:
        data: Bytes of the file.
        public_key: Ed25519 key that must have signed it, 32 bytes; None: a signature is not verified.
        limit: Most bytes of the file, and of the ONNX model decoded, that this device takes.
        check: Called with the manifest and the lengths of weights and ONNX model before the latter is decoded.

    Raises:
        BundleError: The file is faulty; a subclass for each fault.
    """
    if not MAGIC.startswith(data[: len(MAGIC)]):
        raise BadBundleMagic(
            f"the file begins with {data[: len(MAGIC)]!r}, a bundle with {MAGIC!r}: is this another kind of file?"
        )
    version = data[len(MAGIC)] if len(data) > len(MAGIC) else VERSION
    if version != VERSION:
        raise UnsupportedBundleVersion(
            f"format version {version}, expected {VERSION}: made by another version of fedpress?"
        )
    start = HEADER.size + DIGEST_BYTES
    if len(data) < start:
        raise TruncatedBundle(f"{len(data)} bytes, but the header alone has {start}: was the download cut off?")
    _, _, packed_bytes, coded_bytes, deflated_bytes, onnx_bytes, signed = HEADER.unpack_from(data)
    if signed > 1:
        raise UnsupportedBundleVersion(f"flag {signed}, expected 0 or 1: made by a newer version of fedpress?")
    if packed_bytes > MAX_MANIFEST_BYTES or max(packed_bytes + coded_bytes + deflated_bytes, onnx_bytes) > limit:
        raise TooLarge(
            f"the header announces a manifest of {packed_bytes:,} bytes, weights of {coded_bytes:,}, ONNX of"
            f" {deflated_bytes:,} ({onnx_bytes:,} decoded): at most {MAX_MANIFEST_BYTES:,} for the manifest and"
            f" {limit:,} in all are taken here. Is the header damaged? If not, allow more (--largest-mib)"
        )
    if onnx_bytes > MAX_RATIO * deflated_bytes:
        raise TooLarge(
            f"the header announces ONNX of {deflated_bytes:,} bytes, {onnx_bytes:,} decoded: zlib makes at most"
            f" {MAX_RATIO:,} of one; is the header damaged?"
        )
    content = start + packed_bytes + coded_bytes + deflated_bytes
    end = content + (SIGNATURE_BYTES if signed else 0)
    if len(data) < end:
        raise TruncatedBundle(f"{len(data):,} bytes, but the header announces {end:,}: was the download cut off?")
    if len(data) > end:
        raise TrailingBytes(f"{len(data):,} bytes, but the header announces {end:,}: were two files joined?")
    view = memoryview(data)
    digest = hashlib.sha256(view[: HEADER.size])
    digest.update(view[start:])
    if digest.digest() != data[HEADER.size : start]:
        raise BundleChecksumMismatch(
            "the file's SHA-256 is not the one in its header: damaged on the way; download it again"
        )
    if public_key is not None:
        if not signed:
            raise NotSigned("the bundle carries no signature, but a public key was given: is it from somebody else?")
        try:
            message = data[: HEADER.size] + data[start:content]
            Ed25519PublicKey.from_public_bytes(public_key).verify(data[content:], message)
        except InvalidSignature:
            raise WrongSignature(
                f"the signature is not by the key {public_key.hex()[:16]}...: made or changed by somebody else"
            ) from None
    middle, last = start + packed_bytes, start + packed_bytes + coded_bytes
    manifest = inflate(view[start:middle], MAX_MANIFEST_BYTES, InvalidManifest)
    check(manifest, coded_bytes, onnx_bytes)
    onnx = inflate(view[last:content], onnx_bytes, InvalidOnnx) if deflated_bytes else b""
    return Parts(version, manifest, view[middle:last], onnx, bool(signed))


def inflate(coded: bytes | memoryview, most: int, fault: type[Exception]) -> bytes:
    """Decompress a zlib stream, of which a small one must not fill the memory.

    Args:
        coded: The stream, and nothing after it.
        most: Largest number of decompressed bytes.
        fault: Class of the error to raise.

    Raises:
        Exception: A `fault`: the bytes are no zlib stream, or one of more than `most` bytes.
    """
    decoder = zlib.decompressobj()
    try:
        plain = decoder.decompress(coded, most + 1)
    except zlib.error as error:
        raise fault(f"not a zlib stream: {error}") from error
    if len(plain) > most or not decoder.eof or decoder.unused_data:
        raise fault(f"the zlib stream does not end at its {len(coded):,} bytes, or holds more than {most:,}")
    return plain
