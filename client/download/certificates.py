"""Explanations of certificates that do not verify. Standard library alone: daemons have neither torch nor Flower."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path


def reason(error: ssl.SSLCertVerificationError, host: str, ca: Path | None) -> str:
    """Return the fault of a certificate, and the likely mistake.

    Args:
        error: Error of a handshake; its code is one of OpenSSL's `X509_V_ERR_`.
        host: Name or address of the server, as it was given.
        ca: File with the authority's certificate; None: the system's authorities.
    """
    authority = (
        f"it is of another authority than {ca}" if ca else "it is of an authority that this system does not know"
    )
    name = f"it is not for {host}; `fedpress keys renew --host` adds names to a server's"
    clock = f"by the clock of this device, which says {datetime.now(UTC):%Y-%m-%d}"
    hints = {
        9: f"it is not valid yet {clock}; set the clock, best by NTP (timedatectl set-ntp true)",
        10: f"it has run out {clock}",
        18: "it is not signed by an authority",
        19: authority,
        20: authority,
        62: name,
        64: name,
    }
    return hints.get(error.verify_code, error.verify_message)
