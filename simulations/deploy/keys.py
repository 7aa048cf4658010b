"""Keys and certificates of a fleet: a private certificate authority, the server's certificate, and a key a node.

    DIR/                    0700
        ca.crt, ca.key      the authority: clients get ca.crt; ca.key stays here
        server.crt, .key    the server's certificate
        nodes/NAME.pub      public key of an admitted node; `NAME` beside it is the private one, if it was made here
        nodes/NAME.revoked  public key of a revoked node
        clients/NAME.crt    certificates of a hub's clients, and their keys

All are ECDSA on P-384, as Flower requires for node keys. Private keys are 0600. Only `renew` overwrites anything.
"""

from __future__ import annotations

import datetime
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpress.compression.files import MOST_TEXT, read_regular, sync_folder
from fedpress.simulations.deploy import _certificates
from fedpress.simulations.deploy._certificates import KeysError as KeysError

REVOKED = ".revoked"


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
        self.operator = path / "operator.token"

    def public_keys(self) -> dict[str, Path]:
        """Return the public key files of the admitted nodes, by name."""
        return {path.stem: path for path in sorted(self.nodes.glob("*.pub"))}


def init(path: Path, hosts: Iterable[str], days: int) -> Folder:
    """Make a certificate authority, and the server's certificate.

    Args:
        path: Folder, created if needed.
        hosts: Names and addresses under which clients reach the server.
        days: Validity of the server's certificate; that of the authority is ten years.

    Raises:
        KeysError: There are keys already, a host is neither a name nor an address, or the folder cannot be written.
    """
    folder = Folder(path)
    names = _certificates.names(hosts)
    _refuse_to_overwrite(folder.ca, folder.ca_key, folder.server, folder.server_key)
    for place in (folder.path, folder.nodes):
        _make_private(place)
    certificate, key = _certificates.authority(f"fedpress {path.resolve().name}")
    write_private(folder.ca_key, _certificates.pem(key))
    _write(folder.ca, certificate.public_bytes(serialization.Encoding.PEM))
    _issue(folder, folder.server, folder.server_key, "fedpress server", days, names)
    return folder


def renew(path: Path, days: int, hosts: Iterable[str] = ()) -> Folder:
    """Replace the server's certificate and key.

    Args:
        path: Folder of the keys.
        days: Validity of the new certificate.
        hosts: Names and addresses; none: those of the old certificate.

    Raises:
        KeysError: The authority or the old certificate is missing or damaged.
    """
    folder = Folder(path)
    names = (
        _certificates.names(hosts)
        if list(hosts)
        else _certificates.alternatives(_certificates.read_certificate(folder.server))
    )
    _issue(folder, folder.server, folder.server_key, "fedpress server", days, names)
    return folder


def node(path: Path, name: str) -> tuple[Path, Path]:
    """Make a node's key pair: ECDSA in OpenSSH's format, as Flower requires.

    Args:
        path: Folder of the keys, created if needed.
        name: Name of the node.

    Returns:
        Paths of the private and the public key.

    Raises:
        KeysError: The name is taken, or is no file name.
    """
    folder = Folder(path)
    private, public = folder.nodes / check_name(name), folder.nodes / f"{name}.pub"
    _refuse_to_overwrite(private, public, public.with_suffix(REVOKED))
    for place in (folder.path, folder.nodes):
        _make_private(place)
    key, no_password = _certificates.new_key(), serialization.NoEncryption()
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, no_password)
    write_private(private, text)
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(public, line + f" {name}\n".encode())
    return private, public


def client(path: Path, name: str, days: int) -> tuple[Path, Path]:
    """Make a certificate for a client of a hub.

    Args:
        path: Folder of the keys.
        name: Name of the client.
        days: Validity.

    Returns:
        Paths of the certificate and its key.

    Raises:
        KeysError: The name is taken, or there is no authority.
    """
    folder = Folder(path)
    certificate, key = folder.clients / f"{check_name(name)}.crt", folder.clients / f"{name}.key"
    _refuse_to_overwrite(certificate, key)
    _certificates.read_certificate(folder.ca)  # before a folder is made
    _make_private(folder.clients)
    _issue(folder, certificate, key, name, days, None)
    return certificate, key


def revoke(path: Path, name: str) -> Path:
    """Revoke a node's public key, and return its new path.

    Args:
        path: Folder of the keys.
        name: Name of the node.

    Raises:
        KeysError: There is no such key.
    """
    public = Folder(path).nodes / f"{check_name(name)}.pub"
    revoked = public.with_suffix(REVOKED)
    try:
        os.replace(public, revoked)
    except OSError as error:
        known = ", ".join(Folder(path).public_keys()) or "none"
        raise KeysError(f"cannot revoke {name}: {public}: {error.strerror}; nodes there are {known}") from None
    sync_folder(public.parent)
    return revoked


def check(folder: Folder) -> list[str]:
    """Check the files that a server needs, and return warnings.

    Raises:
        KeysError: One is missing or damaged, or the server's certificate has expired or is not of this authority.
    """
    authority, server = _certificates.read_certificate(folder.ca), _certificates.read_certificate(folder.server)
    _certificates.read_private_key(folder.server_key)
    try:
        server.verify_directly_issued_by(authority)
    except Exception as error:  # cryptography names a different class for each fault
        raise KeysError(f"{folder.server} is not signed by {folder.ca}; were the files mixed up? ({error})") from None
    left = server.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    how = f"`fedpress keys renew {folder.path}` makes a new one, and a restart of the server takes it"
    if left.total_seconds() <= 0:
        raise KeysError(f"{folder.server} has expired on {server.not_valid_after_utc:%Y-%m-%d}; {how}")
    warnings = loose([folder.path, folder.ca_key, folder.server_key, folder.operator])
    if left.days < 30:
        warnings.append(f"{folder.server} expires in {left.days} days; {how}")
    return warnings


def loose(paths: Iterable[Path]) -> list[str]:
    """Return a warning for each path that others than its owner can access."""
    warnings = []
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0
        if mode & 0o077:
            wanted = "700" if path.is_dir() else "600"
            warnings.append(f"{path} is open to others (mode {mode:o}); close it: chmod {wanted} {path}")
    return warnings


def node_key(path: Path) -> list[str]:
    """Check a node's private key, and return warnings.

    Raises:
        KeysError: It is missing, or not of the kind that Flower needs.
    """
    try:
        data = read_regular(path, MOST_TEXT)
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
    """Return a public key, read in OpenSSH's format, in PEM as Flower sends it.

    Raises:
        KeysError: It is missing, or not an ECDSA key.
    """
    try:
        key = serialization.load_ssh_public_key(read_regular(path, MOST_TEXT))
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("it is not an ECDSA key")
    except Exception as error:
        raise KeysError(f"{path} is not a node's public key: {error}; `fedpress keys node` makes one") from None
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def check_name(name: str) -> str:
    """Return a node's or client's name if it is valid as a file name.

    Raises:
        KeysError: It is not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name) or name.endswith(REVOKED):
        raise KeysError(f"got the name {name!r}; expected letters, digits, - _ and ., the first a letter or digit")
    return name


def write_private(path: Path, data: bytes) -> None:
    """Write a file with mode 600 from its creation on; an existing file is replaced atomically.

    Args:
        path: The file.
        data: Its contents.

    Raises:
        KeysError: It cannot be written.
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


def _issue(folder: Folder, to: Path, to_key: Path, name: str, days: int, names: list[x509.GeneralName] | None) -> None:
    """Write a new key and its certificate: a server's for `names`, with None a client's."""
    signed_by, signer = _certificates.read_certificate(folder.ca), _certificates.read_private_key(folder.ca_key)
    certificate, key = _certificates.issued(signed_by, signer, name, days, names)
    write_private(to_key, _certificates.pem(key))
    _write(to, certificate.public_bytes(serialization.Encoding.PEM))


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
