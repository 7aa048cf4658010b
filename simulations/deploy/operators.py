"""Proof of who operates a SuperLink: a token beside the server's keys.

Flower's Control API asks for nothing, and an address proves nothing: behind a proxy on the server's own machine all
peers have that machine's. `flower_home` writes a FLWR_HOME with the token, with which Flower's own commands are an
operator's, as in

    FLWR_HOME=server-state/operator flwr ls
"""

from __future__ import annotations

import base64
import os
import re
import secrets
from pathlib import Path
from typing import Final

import yaml

from fedpress.compression import files
from fedpress.simulations.deploy import keys

TOKEN: Final = "FEDPRESS_OPERATOR_TOKEN"
"""Environment variable with the token, which goes before the file."""
PREFIX: Final = "fpo_"  # so that secret scanners can find one
CONNECTION: Final = "fedpress"
"""Name of the server in Flower's settings."""
MOST_BYTES: Final = 1000


def token(folder: keys.Folder) -> str:
    """Return the operators' token, of the environment or else of the keys; empty: there is none.

    Raises:
        KeysError: It cannot be read, or is no token.
    """
    given, source = os.environ.get(TOKEN, "").strip(), TOKEN
    if not given:
        source = str(folder.operator)
        try:
            given = files.read_text(folder.operator, MOST_BYTES).strip()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise keys.KeysError(f"cannot read the operators' token {folder.operator}: {reason}") from None
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]{32,256}", given):
        raise keys.KeysError(
            f"the operators' token in {source} is none: expected 32 to 256 letters, digits and - _ . ~ + / =;"
            " remove it, and the server makes one"
        )
    return given


def make_token(folder: keys.Folder) -> str:
    """Return the operators' token; where there is none, make it.

    Raises:
        KeysError: As `token`, or it cannot be written.
    """
    if found := token(folder):
        return found
    made = PREFIX + secrets.token_urlsafe(32)
    keys.write_private(folder.operator, f"{made}\n".encode())
    return made


def flower_home(home: Path, address: str, ca: Path, given: str) -> None:
    """Write settings for Flower's own commands (`flwr run`, `flwr ls`, ...).

    Args:
        home: The folder, a FLWR_HOME; of mode 700 after this.
        address: HOST:PORT of the SuperLink.
        ca: Certificate of its authority.
        given: The operators' token.

    Raises:
        KeysError: The folder cannot be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        home.chmod(0o700)
    except OSError as error:
        raise keys.KeysError(f"cannot use the folder {home}: {error.strerror}") from None
    entries = {"authn-type": "oidc", "oidc-access-token": given, "oidc-refresh-token": given}
    coded = {
        f"flower.account-auth.{address}.{name}": base64.b64encode(text.encode()).decode()
        for name, text in entries.items()
    }
    keys.write_private(home / "credentials.yaml", yaml.safe_dump(coded).encode())
    connection = f"[superlink.{CONNECTION}]\naddress = \"{address}\"\nroot-certificates = '{ca}'\n"
    keys.write_private(home / "config.toml", f'[superlink]\ndefault = "{CONNECTION}"\n\n{connection}'.encode())


def new_secret(path: Path) -> Path:
    """Write a new secret for Flower's own processes on this machine, and return its path.

    Raises:
        KeysError: It cannot be written.
    """
    keys.write_private(path, secrets.token_bytes(32))
    return path
