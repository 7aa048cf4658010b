"""Keys and certificates of a fleet: a certificate authority of one's own, the server's certificate, and a key a node.

    DIR/                    0700
        ca.crt, ca.key      the authority: clients get ca.crt; ca.key stays here
        server.crt, .key    the server's certificate
        nodes/NAME.pub      a node that is let in; `NAME` beside it is its private key, if it was made here
        nodes/NAME.revoked  one that is not any more
        clients/NAME.crt    certificates that show a hub who its client is, and their keys

All are ECDSA on P-384, as Flower wants node keys. Private keys are 0600. Only `renew` overwrites anything.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedpress.compression.errors import FedpressError
from fedpress.compression.files import sync_folder

LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names that every server's certificate is also for: its own processes reach it so."""
CA_DAYS = 3650
REVOKED = ".revoked"


class KeysError(FedpressError, ValueError):
    """Keys cannot be made, read or used."""


class Folder:
    """The paths of a folder of keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ca = path / "ca.crt"
        self.ca_key = path / "ca.key"
        self.server = path / "server.crt"
        self.server_key = path / "server.key"
        self.nodes = path / "nodes"
        self.clients = path / "clients"

    def public_keys(self) -> dict[str, Path]:
        """The nodes that are let in, by name."""
        return {path.stem: path for path in sorted(self.nodes.glob("*.pub"))}


def init(path: Path, hosts: Iterable[str], days: int) -> Folder:
    """Make a certificate authority, and the server's certificate.

    Args:
        path: a folder, made if need be.
        hosts: names and addresses under which clients reach the server.
        days: how long the server's certificate is valid; the authority is for ten years.

    Raises:
        KeysError: there are keys already, a host is no name or address, or the folder cannot be written.
    """
    folder = Folder(path)
    names = _names(hosts)
    _refuse_to_overwrite(folder.ca, folder.ca_key, folder.server, folder.server_key)
    for place in (folder.path, folder.nodes):
        _make_private(place)
    key = _new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedpress {path.resolve().name}")])
    certificate = (
        _builder(name, name, key.public_key(), key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    write_private(folder.ca_key, _pem(key))
    _write(folder.ca, certificate.public_bytes(serialization.Encoding.PEM))
    _issue(folder, folder.server, folder.server_key, "fedpress server", days, names)
    return folder


def renew(path: Path, days: int, hosts: Iterable[str] = ()) -> Folder:
    """Replace the server's certificate and key; the names stay, unless others are given.

    Raises:
        KeysError: the authority or the old certificate is missing or damaged.
    """
    folder = Folder(path)
    names = _names(hosts) if list(hosts) else _alternatives(_certificate(folder.server))
    _issue(folder, folder.server, folder.server_key, "fedpress server", days, names)
    return folder


def node(path: Path, name: str) -> tuple[Path, Path]:
    """Make a node's key pair, as Flower wants it: ECDSA in OpenSSH's format. Return the private and the public file.

    Raises:
        KeysError: there is one of this name, or the name cannot be a file's.
    """
    folder = Folder(path)
    private, public = folder.nodes / check_name(name), folder.nodes / f"{name}.pub"
    _refuse_to_overwrite(private, public, public.with_suffix(REVOKED))
    for place in (folder.path, folder.nodes):
        _make_private(place)
    key, no_password = _new_key(), serialization.NoEncryption()
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, no_password)
    write_private(private, text)
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(public, line + f" {name}\n".encode())
    return private, public


def client(path: Path, name: str, days: int) -> tuple[Path, Path]:
    """Make a certificate that tells a hub who its client is. Return the certificate and its key.

    Raises:
        KeysError: there is one of this name, or no authority.
    """
    folder = Folder(path)
    certificate, key = folder.clients / f"{check_name(name)}.crt", folder.clients / f"{name}.key"
    _refuse_to_overwrite(certificate, key)
    _certificate(folder.ca)  # before a folder is made
    _make_private(folder.clients)
    _issue(folder, certificate, key, name, days, None)
    return certificate, key


def revoke(path: Path, name: str) -> Path:
    """Take a node's public key out of those that are let in, and return its new path.

    Raises:
        KeysError: there is no such key.
    """
    public = Folder(path).nodes / f"{check_name(name)}.pub"
    aside = public.with_suffix(REVOKED)
    try:
        os.replace(public, aside)
    except OSError as error:
        known = ", ".join(Folder(path).public_keys()) or "none"
        raise KeysError(f"cannot revoke {name}: {public}: {error.strerror}; nodes there are {known}") from None
    sync_folder(public.parent)
    return aside


def check(folder: Folder) -> list[str]:
    """Return warnings on files that a server is about to use.

    Raises:
        KeysError: one is missing or damaged, or the server's certificate has run out or is not of this authority.
    """
    authority, server = _certificate(folder.ca), _certificate(folder.server)
    _private_key(folder.server_key)
    try:
        server.verify_directly_issued_by(authority)
    except Exception as error:  # cryptography names a different class for each fault
        raise KeysError(f"{folder.server} is not signed by {folder.ca}; were the files mixed up? ({error})") from None
    left = server.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    how = f"`fedpress keys renew {folder.path}` makes a new one, and a restart of the server takes it"
    if left.total_seconds() <= 0:
        raise KeysError(f"{folder.server} has run out on {server.not_valid_after_utc:%Y-%m-%d}; {how}")
    warnings = loose([folder.path, folder.ca_key, folder.server_key])
    if left.days < 30:
        warnings.append(f"{folder.server} runs out in {left.days} days; {how}")
    return warnings


def loose(paths: Iterable[Path]) -> list[str]:
    """Return a warning for each of these that others than its owner can read or write."""
    found = []
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0
        if mode & 0o077:
            wanted = "700" if path.is_dir() else "600"
            found.append(f"{path} is open to others (mode {mode:o}); close it: chmod {wanted} {path}")
    return found


def node_key(path: Path) -> list[str]:
    """Check a node's private key, and return warnings.

    Raises:
        KeysError: it is missing, or not what Flower takes.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KeysError(
            f"cannot read the node's key {path}: {error.strerror}; `fedpress keys node` makes one"
        ) from None
    try:
        key = serialization.load_ssh_private_key(data, None)
    except Exception as error:
        hint = " It is in PEM format, which Flower refuses" if b"-----BEGIN" in data and b"OPENSSH" not in data else ""
        raise KeysError(
            f"{path} is not an ECDSA private key in OpenSSH's format: {error}.{hint}; `fedpress keys node` makes one"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeysError(f"{path} is not an ECDSA key, as Flower's nodes need; `fedpress keys node` makes one")
    return loose([path])


def public_bytes(path: Path) -> bytes:
    """Return a public key of OpenSSH's format as Flower sends it, in PEM.

    Raises:
        KeysError: it is missing, or no such key.
    """
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("it is not an ECDSA key")
    except Exception as error:
        raise KeysError(f"{path} is not a node's public key: {error}; `fedpress keys node` makes one") from None
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def check_name(name: str) -> str:
    """Return a name that can be a file's.

    Raises:
        KeysError: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name) or name.endswith(REVOKED):
        raise KeysError(f"got the name {name!r}; expected letters, digits, - _ and ., the first a letter or digit")
    return name


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, at no time anybody else; a file of before is replaced.

    Raises:
        KeysError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.new")
    try:
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise KeysError(f"cannot write {path}: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    write_private(path, data)
    path.chmod(0o644)


def _make_private(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not any(path.iterdir()):
            path.chmod(0o700)
    except OSError as error:
        raise KeysError(f"cannot make the folder {path}: {error.strerror}") from None


def _refuse_to_overwrite(*paths: Path) -> None:
    if present := [str(path) for path in paths if path.exists()]:
        raise KeysError(f"{', '.join(present)} is there already, and keys are never overwritten; choose another name")


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for host in dict.fromkeys([*hosts, *LOCAL]):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if not re.fullmatch(r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?)+", host):
                raise KeysError(f"got the host {host!r}; expected a name or an address, without a port") from None
            found.append(x509.DNSName(host))
    return found


def _alternatives(certificate: x509.Certificate) -> list[x509.GeneralName]:
    return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


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


def _issue(folder: Folder, to: Path, to_key: Path, name: str, days: int, names: list[x509.GeneralName] | None) -> None:
    """Write a new key and its certificate: a server's for these names, or a client's."""
    authority, signer, key = _certificate(folder.ca), _private_key(folder.ca_key), _new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(subject, authority.subject, key.public_key(), signer.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(certificates=False), critical=True)
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if names else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(signer, hashes.SHA384())
    write_private(to_key, _pem(key))
    _write(to, certificate.public_bytes(serialization.Encoding.PEM))


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise KeysError(f"cannot read {path}: {error.strerror}; `fedpress keys init` makes it") from None
    except ValueError as error:
        raise KeysError(f"{path} is not a certificate in PEM format: {error}") from None


def _private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise KeysError(f"cannot read {path}: {error.strerror}; `fedpress keys init` makes it") from None
    except (ValueError, TypeError) as error:
        raise KeysError(f"{path} is not a private key in PEM format: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeysError(f"{path} is not an ECDSA key")
    return key
