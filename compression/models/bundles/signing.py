"""Files of the Ed25519 keys that sign bundles: PEM, as `openssl genpkey -algorithm ed25519` writes them.

S. Josefsson, I. Liusvaara, "Edwards-Curve Digital Signature Algorithm (EdDSA)", RFC 8032; the files: RFC 8410.
"""

from __future__ import annotations

import re
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedpress.compression import files
from fedpress.compression.errors import FedpressError

MAKE_PRIVATE = "openssl genpkey -algorithm ed25519 -out signing.pem"
MAKE_PUBLIC = "openssl pkey -in signing.pem -pubout -out signing.pub.pem"


class SigningKeyError(FedpressError, ValueError):
    """A file is not the expected key."""


def read_private(path: Path) -> bytes:
    """Return the private key in a PEM file, 32 bytes.

    Raises:
        SigningKeyError: The file is missing, or holds something else.
    """
    data = _read(path, MAKE_PRIVATE)
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise SigningKeyError(
            f"{path} is no private key in PEM without a password; make one: {MAKE_PRIVATE}"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError(f"{path} holds a key of another kind, expected Ed25519; make one: {MAKE_PRIVATE}")
    return key.private_bytes_raw()


def read_public(path: Path) -> bytes:
    """Return the public key in a file, 32 bytes; the file holds PEM, the bytes, or 64 hexadecimal digits.

    Raises:
        SigningKeyError: The file is missing, or holds something else, such as the private key.
    """
    data = _read(path, MAKE_PUBLIC)
    if len(data) == 32:
        return data
    if re.fullmatch(rb"\s*[0-9a-fA-F]{64}\s*", data):
        return bytes.fromhex(data.decode().strip())
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningKeyError(
            f"{path} is no public key in PEM; derive it from the private one: {MAKE_PUBLIC}"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise SigningKeyError(f"{path} holds a key of another kind, expected Ed25519")
    return key.public_bytes_raw()


def _read(path: Path, make: str) -> bytes:
    try:
        return files.read_regular(path.expanduser(), files.MOST_TEXT)
    except OSError as error:
        raise SigningKeyError(f"cannot read the key {path}: {error.strerror}; make one: {make}") from error
