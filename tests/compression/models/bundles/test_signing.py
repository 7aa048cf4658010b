"""Key files, as openssl and the cryptography package write them."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedpress.compression.models.bundles import signing


def pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command here")
def test_the_commands_that_errors_name_make_such_keys(tmp_path: Path) -> None:
    for command in (signing.MAKE_PRIVATE, signing.MAKE_PUBLIC):
        subprocess.run(command.split(), cwd=tmp_path, check=True, timeout=60)
    private = signing.read_private(tmp_path / "signing.pem")
    public = signing.read_public(tmp_path / "signing.pub.pem")
    assert Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw() == public


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    key, other = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())
    files = {
        "private": pem(key),
        "public": public_pem(key),
        "ec": pem(other),
        "ec.pub": public_pem(other),
        "text": b"a",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert signing.read_private(tmp_path / "private") == key.private_bytes_raw()
    raw = key.public_key().public_bytes_raw()
    (tmp_path / "raw").write_bytes(raw)
    (tmp_path / "hex").write_text(raw.hex() + "\n")
    assert [signing.read_public(tmp_path / name) for name in ("public", "raw", "hex")] == [raw] * 3
    for name, expected in (
        ("public", "no private key"),
        ("text", "no private key"),
        ("ec", "of another kind"),
        ("absent", "cannot read the key"),
    ):
        with pytest.raises(signing.SigningKeyError, match=expected):
            signing.read_private(tmp_path / name)
    for name, expected in (("private", "no public key"), ("text", "no public key"), ("ec.pub", "of another kind")):
        with pytest.raises(signing.SigningKeyError, match=expected):
            signing.read_public(tmp_path / name)
