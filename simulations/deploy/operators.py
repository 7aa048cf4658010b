"""Proof of who operates a SuperLink: a token in a folder of the server's own, and Flower's settings beside it.

The folder is a FLWR_HOME: with it Flower's own commands are those of an operator, as in

    FLWR_HOME=server-state/operator flwr ls
"""

from __future__ import annotations

import base64
import os
import re
import secrets
from pathlib import Path

import yaml

from fedpress.compression import files
from fedpress.simulations.deploy import keys
from fedpress.simulations.deploy.keys import KeysError

TOKEN = "FEDPRESS_OPERATOR_TOKEN"
"""Environment variable with the token, in place of the one in the folder."""
PREFIX = "fpo_"  # so that secret scanners can find one
CONNECTION = "fedpress"
"""Name of the server in Flower's settings."""
LEAST_LETTERS = 32


def token_file(folder: Path) -> Path:
    """Return the path of the token in an operator's folder."""
    return folder / "token"


def given_token() -> str:
    """Return the token of the environment; empty: there is none."""
    return os.environ.get(TOKEN, "").strip()


def prepare(folder: Path, address: str, ca: Path) -> str:
    """Make or complete an operator's folder, and return the token: a new one where there is none.

    Args:
        folder: The folder, of mode 700 after this.
        address: HOST:PORT of the SuperLink.
        ca: Certificate of its authority.

    Raises:
        KeysError: The folder cannot be written, or the token is not one.
    """
    path = token_file(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        stored = files.read_regular(path, 1000).decode(errors="replace").strip() if path.exists() else ""
    except OSError as error:
        raise KeysError(f"cannot use the operator's folder {folder}: {error.strerror or error}") from None
    token = given_token() or stored or PREFIX + secrets.token_urlsafe(32)
    if not re.fullmatch(rf"[A-Za-z0-9._~+/=-]{{{LEAST_LETTERS},256}}", token):
        raise KeysError(
            f"the operators' token in {TOKEN if given_token() else path} is none: expected {LEAST_LETTERS} to 256"
            " letters, digits and - _ . ~ + / =; without one, the server makes it"
        )
    if token != stored:
        keys.write_private(path, f"{token}\n".encode())
    entry = f"flower.account-auth.{address}"
    credentials = {"authn-type": "oidc", "oidc-access-token": token, "oidc-refresh-token": token}
    coded = {f"{entry}.{name}": base64.b64encode(text.encode()).decode() for name, text in credentials.items()}
    keys.write_private(folder / "credentials.yaml", yaml.safe_dump(coded).encode())
    keys.write_private(
        folder / "config.toml",
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f"address = \"{address}\"\nroot-certificates = '{ca}'\n".encode(),
    )
    return token


def superexec_secret(path: Path) -> Path:
    """Write a new secret for Flower's own processes, and return its path.

    Raises:
        KeysError: It cannot be written.
    """
    keys.write_private(path, secrets.token_bytes(32))
    return path
