"""Access control and rate limits of the hub.

A client sends its token as `authorization: Bearer TOKEN`; the hub knows only the SHA-256 of each, from a file with
lines of a name and 64 hexadecimal digits. Rates are token buckets (J. Turner, "New directions in communications", IEEE
Communications Magazine 24(10), 1986): they fill at a constant rate up to a capacity, and requests drain them.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from fedpress.compression import files
from fedpress.compression.errors import FedpressError

BURST_SECONDS: Final = 60.0
"""Requests that a client left unused in this time, it may make at once."""
MAX_CLIENTS: Final = 10_000
MAX_LOGGED: Final = 10_000
TOKEN_PREFIX: Final = "fph_"  # so that secret scanners can find one
HEAD: Final = "# Tokens of `fedpress hub`: a name and the SHA-256 of its token. Without its line, a token is revoked.\n"
NAME: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

_log = logging.getLogger(__name__)


class TokenError(FedpressError, ValueError):
    """The file of tokens cannot be used, or a name cannot be added."""


class Bucket:
    """Token bucket: refill rate and capacity, in requests or bytes.

    >>> bucket = Bucket(rate=2.0, most=3.0, now=0.0)
    >>> [bucket.take(1, now=0.0) for _ in range(4)]    # the fourth would have to wait
    [0.0, 0.0, 0.0, 0.5]

    Args:
        rate: Refill rate per second.
        most: Capacity; the bucket is full at first.
        now: Present time, in seconds.
    """

    def __init__(self, rate: float, most: float, now: float) -> None:
        self.rate, self.most = rate, most
        self._level, self._at = most, now

    def take(self, amount: float, now: float) -> float:
        """Drain the bucket where it holds enough.

        Args:
            amount: Amount to take.
            now: Present time, in seconds.

        Returns:
            0 where the amount was taken; else the seconds until the bucket holds it, and nothing is taken.
        """
        self._fill(now)
        if self._level < amount:
            return (amount - self._level) / self.rate
        self._level -= amount
        return 0.0

    def owe(self, amount: float, now: float) -> float:
        """Drain the bucket in any case, also below zero, and return the seconds until it is back at zero.

        Args:
            amount: Amount to take.
            now: Present time, in seconds.
        """
        self._fill(now)
        self._level -= amount
        return max(0.0, -self._level / self.rate)

    def _fill(self, now: float) -> None:
        self._level = min(self.most, self._level + (now - self._at) * self.rate)
        self._at = now


class Tokens:
    """File of tokens, read again when it changes.

    At the start every line must be valid. Later an invalid line is skipped and logged, and without the file no token is
    valid.

    Args:
        path: Path of the file.

    Raises:
        TokenError: The file cannot be read, or a line is not a name and a SHA-256.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._state()
        self._names, faults = _parse(path, _read(path))
        if faults:
            raise TokenError(faults[0])

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, token: str) -> str | None:
        """Return the name of a token, None for an unknown one."""
        self._refresh()
        digest = hashlib.sha256(token.encode()).digest()
        match = None
        for known, name in self._names.items():  # all of them, so that the time reveals nothing
            if hmac.compare_digest(known, digest):
                match = name
        return match

    def _refresh(self) -> None:
        seen = self._state()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            text = _read(self.path)
        except TokenError as error:
            self._names = {}
            _log.error("no token is valid: %s", error)
            return
        self._names, faults = _parse(self.path, text)
        for fault in faults:
            _log.error("skipped: %s", fault)
        _log.info("%s has changed: %d tokens", self.path, len(self._names))

    def _state(self) -> tuple[int, ...]:
        try:
            status = self.path.stat()
        except OSError:
            return ()
        return status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> str:
    try:
        return files.read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise TokenError(f"cannot read the tokens in {path}: {reason}; `fedpress hub-token` makes the file") from None


def _parse(path: Path, text: str) -> tuple[dict[bytes, str], list[str]]:
    """Return the names by digest, and the faults of invalid lines."""
    names: dict[bytes, str] = {}
    faults = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(rf"\s*({NAME})\s+([0-9a-fA-F]{{64}})\s*", line)
        if match:
            names[bytes.fromhex(match[2])] = match[1]
        else:
            faults.append(
                f"{path}, line {number}: expected a name and the SHA-256 of a token in 64 hexadecimal digits;"
                " is it the token itself? `fedpress hub-token NAME` writes such a line"
            )
    return names, faults


def add_token(path: Path, name: str) -> str:
    """Make a token, add its hash to the file under a name, and return it: it is stored nowhere.

    Args:
        path: Path of the file of tokens; made if it is absent.
        name: Name of the token's owner.

    Raises:
        TokenError: The name is in use or unusable, or the file is not one of tokens.
    """
    if not re.fullmatch(NAME, name):
        raise TokenError(f"name {name!r}: expected at most 64 letters, digits, dots, - and _")
    text = _read(path) if path.exists() else HEAD
    names, faults = _parse(path, text)
    if faults:
        raise TokenError(faults[0])
    if name in names.values():
        raise TokenError(f"{path} has a token of {name!r} already; remove that line first, which revokes it")
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {hashlib.sha256(token.encode()).hexdigest()}\n"
    text += "" if text.endswith("\n") or not text else "\n"
    try:
        files.write_atomically(path, (text + line).encode())
    except OSError as error:
        raise TokenError(f"cannot write {path}: {error.strerror or error}") from None
    return token


class Caller:
    """Downloads and limits of one client.

    Args:
        name: Name for the log.
        requests: Requests a minute.
        rate: Bytes a second over all its downloads; None: no limit.
    """

    def __init__(self, name: str, requests: int, rate: int | None) -> None:
        now = time.monotonic()
        self.name = name
        self.streams = 0
        self.last = now
        self.requests = Bucket(requests / 60, max(1.0, requests * BURST_SECONDS / 60), now)
        self.bytes = Bucket(rate, rate, now) if rate else None


class Clients:
    """Recent clients, and the number of downloads under way.

    Args:
        most: Most simultaneous downloads of all clients.
        each: Most simultaneous downloads of one client.
        requests: Requests a minute, of one client.
        rate: Bytes a second, of one client; None: no limit.
    """

    def __init__(self, most: int, each: int, requests: int, rate: int | None) -> None:
        self.most, self.each = most, each
        self._limits = requests, rate
        self._known: dict[str, Caller] = {}
        self.streams = 0

    def get(self, name: str) -> Caller:
        """Return a client by its name; a new one starts with full buckets."""
        client = self._known.get(name)
        now = time.monotonic()
        if client is None:
            if len(self._known) >= MAX_CLIENTS:  # forgetting clients whose buckets are full again changes nothing
                known = self._known.values()
                idle = [other for other in known if not other.streams and now - other.last > BURST_SECONDS]
                for other in idle or [min(known, key=lambda other: (other.streams > 0, other.last))]:
                    del self._known[other.name]
            client = self._known[name] = Caller(name, *self._limits)
        client.last = now
        return client

    def why_not(self, client: Caller) -> str | None:
        """Return the reason to refuse the client one more download; None: it may have it."""
        if client.streams >= self.each:
            return f"{client.name} has {client.streams} downloads under way, and {self.each} are allowed"
        if self.streams >= self.most:
            return f"{self.streams} downloads are under way, the most that this hub allows"
        return None

    @contextmanager
    def download(self, client: Caller) -> Iterator[None]:
        """Count one more download of the client for as long as the context lasts."""
        client.streams += 1
        self.streams += 1
        try:
            yield
        finally:
            client.streams -= 1
            self.streams -= 1


class Refusals:
    """Log of refusals, once for a peer and a reason: a device that retries all night must not fill the disk."""

    def __init__(self) -> None:
        self._logged: set[tuple[str, str]] = set()

    def log(self, peer: str, reason: str, message: str) -> None:
        """Log a refusal, unless this reason was logged for this peer.

        Args:
            peer: Address of the client.
            reason: One of a few words.
            message: The particulars.
        """
        if (peer, reason) in self._logged:
            return
        if len(self._logged) >= MAX_LOGGED:
            self._logged.clear()
        self._logged.add((peer, reason))
        _log.warning("refused %s: %s (logged once)", peer, message)


def address(peer: str) -> str:
    """Return the address of gRPC's `peer()` without the port; of IPv6 the /64 network, which one device may own.

    >>> address("ipv4:10.0.0.7:50123"), address("ipv6:%5B2001:db8::1:2:3:4%5D:50123")
    ('10.0.0.7', '2001:db8::/64')
    """
    host = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return peer  # a Unix socket
    if isinstance(parsed, ipaddress.IPv4Address):
        return host
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
