"""X.509 certificates and ECDSA keys on P-384, in memory; `keys` reads and writes their files."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedpress.compression.errors import FedpressError
from fedpress.compression.files import MOST_TEXT, read_regular

LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names in every server's certificate, under which the server's own processes connect."""
CA_DAYS = 3650


class KeysError(FedpressError, ValueError):
    """Keys cannot be made, read or used."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new ECDSA key on P-384, as Flower wants node keys."""
    return ec.generate_private_key(ec.SECP384R1())


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key in PEM, without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    """Return the subject alternative names of a server's certificate: the hosts, and `LOCAL`.

    Raises:
        KeysError: A host is neither a name nor an address.
    """
    alternatives: list[x509.GeneralName] = []
    for host in dict.fromkeys([*hosts, *LOCAL]):
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if not re.fullmatch(r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?)+", host):
                raise KeysError(f"got the host {host!r}; expected a name or an address, without a port") from None
            alternatives.append(x509.DNSName(host))
    return alternatives


def alternatives(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """Return the subject alternative names of a certificate."""
    return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def read_certificate(path: Path) -> x509.Certificate:
    """Read a certificate in PEM.

    Raises:
        KeysError: It is missing or damaged.
    """
    try:
        return x509.load_pem_x509_certificate(read_regular(path, MOST_TEXT))
    except OSError as error:
        raise KeysError(f"cannot read {path}: {error.strerror}; `fedpress keys init` makes it") from None
    except ValueError as error:
        raise KeysError(f"{path} is not a certificate in PEM format: {error}") from None


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read an ECDSA private key in PEM.

    Raises:
        KeysError: It is missing, damaged, or of another kind.
    """
    try:
        key = serialization.load_pem_private_key(read_regular(path, MOST_TEXT), None)
    except OSError as error:
        raise KeysError(f"cannot read {path}: {error.strerror}; `fedpress keys init` makes it") from None
    except (ValueError, TypeError) as error:
        raise KeysError(f"{path} is not a private key in PEM format: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeysError(f"{path} is not an ECDSA key")
    return key


def authority(name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return the certificate of a new authority, valid for ten years, and its key."""
    key, subject = new_key(), _subject(name)
    certificate = (
        _builder(subject, subject, key.public_key(), key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    return certificate, key


def issued(
    signed_by: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    name: str,
    days: int,
    alternatives: list[x509.GeneralName] | None,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return a new certificate and its key, for a server or a client.

    Args:
        signed_by: Certificate of the authority.
        signer: Private key of the authority.
        name: Common name of the certificate's owner.
        days: Validity, 1 to `CA_DAYS`.
        alternatives: Names and addresses of a server; None: a client's certificate.

    Raises:
        KeysError: The days are out of range.
    """
    key = new_key()
    builder = _builder(_subject(name), signed_by.subject, key.public_key(), signer.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(certificates=False), critical=True)
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if alternatives else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(signer, hashes.SHA384()), key


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    if not 0 < days <= CA_DAYS:
        raise KeysError(f"got {days} days of validity, expected 1 to {CA_DAYS}")
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # devices' clocks are not exact
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )
