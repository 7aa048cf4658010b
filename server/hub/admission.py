"""Whom the hub lets in, and how much each may ask for at once.

Who has a token, shows it as `authorization: Bearer TOKEN`; the hub knows the SHA-256 of each alone, from a file with
lines of a name and 64 hexadecimal digits. Rates are token buckets (J. Turner, "New directions in communications",
IEEE Communications Magazine 24(10), 1986): they fill steadily up to a limit, and what is asked for is taken out.
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
"""What a client left unused of its requests in this time, it may still ask for at once."""
MAX_CLIENTS: Final = 10_000
MAX_SAID: Final = 10_000
TOKEN_PREFIX: Final = "fph_"  # so that secret scanners can find one
HEAD: Final = "# Tokens of `fedpress hub`: a name and the SHA-256 of its token. Without its line, a token is revoked.\n"
NAME: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

_log = logging.getLogger(__name__)


class TokenError(FedpressError, ValueError):
    """The file of tokens cannot be used, or a name cannot be added."""


class Bucket:
    """So much a second, and at most so much at once.

    >>> bucket = Bucket(rate=2.0, most=3.0, now=0.0)
    >>> [bucket.take(1, now=0.0) for _ in range(4)]    # the fourth would have to wait
    [0.0, 0.0, 0.0, 0.5]

    Args:
        rate: Filled in a second.
        most: It holds; full at first.
        now: The time, in seconds.
    """

    def __init__(self, rate: float, most: float, now: float) -> None:
        self.rate, self.most = rate, most
        self._level, self._at = most, now

    def take(self, amount: float, now: float) -> float:
        """Take this out and return 0; where there is too little nothing is taken: return the seconds to wait."""
        self._fill(now)
        if self._level < amount:
            return (amount - self._level) / self.rate
        self._level -= amount
        return 0.0

    def owe(self, amount: float, now: float) -> float:
        """Take this out in any case, and return how many seconds it takes until nothing is owed."""
        self._fill(now)
        self._level -= amount
        return max(0.0, -self._level / self.rate)

    def _fill(self, now: float) -> None:
        self._level = min(self.most, self._level + (now - self._at) * self.rate)
        self._at = now


class Tokens:
    """The file of tokens, read again when it changes.

    At the start it must be right. Later a line that is not is left out and logged; without the file nobody is let in.

    Raises:
        TokenError: There is no such file, or a line is not a name and a SHA-256.
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
        """Return whose token it is, or None."""
        self._refresh()
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for known, name in self._names.items():  # all of them: the time taken says nothing
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _refresh(self) -> None:
        seen = self._state()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            text = _read(self.path)
        except TokenError as error:
            self._names = {}
            _log.error("nobody is let in: %s", error)
            return
        self._names, faults = _parse(self.path, text)
        for fault in faults:
            _log.error("left out: %s", fault)
        _log.info("%s has changed: %d tokens", self.path, len(self._names))

    def _state(self) -> tuple[int, ...]:
        try:
            status = self.path.stat()
        except OSError:
            return ()
        return status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise TokenError(f"cannot read the tokens in {path}: {reason}; `fedpress hub-token` makes the file") from None


def _parse(path: Path, text: str) -> tuple[dict[bytes, str], list[str]]:
    """The names by digest, and what is wrong."""
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


class Client:
    """What one client has under way, and what it may still ask for.

    Args:
        name: As in the log.
        requests: A minute.
        rate: Bytes a second, over all its downloads; None: as fast as it goes.
    """

    def __init__(self, name: str, requests: int, rate: int | None) -> None:
        now = time.monotonic()
        self.name = name
        self.streams = 0
        self.last = now
        self.requests = Bucket(requests / 60, max(1.0, requests * BURST_SECONDS / 60), now)
        self.bytes = Bucket(rate, rate, now) if rate else None


class Clients:
    """All clients of late, and how many downloads are under way.

    Args:
        most: Downloads at once, of all.
        each: Of one.
        requests, rate: As for a `Client`.
    """

    def __init__(self, most: int, each: int, requests: int, rate: int | None) -> None:
        self.most, self.each = most, each
        self._limits = requests, rate
        self._known: dict[str, Client] = {}
        self.streams = 0

    def get(self, name: str) -> Client:
        """Return a client by its name; one that is new gets its full share."""
        client = self._known.get(name)
        now = time.monotonic()
        if client is None:
            if len(self._known) >= MAX_CLIENTS:  # those whose buckets are full again are as good as new
                idle = [one for one in self._known.values() if not one.streams and now - one.last > BURST_SECONDS]
                for one in idle or [min(self._known.values(), key=lambda one: (one.streams > 0, one.last))]:
                    del self._known[one.name]
            client = self._known[name] = Client(name, *self._limits)
        client.last = now
        return client

    def why_not(self, client: Client) -> str | None:
        """Return why the client cannot have one more download now, or None."""
        if client.streams >= self.each:
            return f"{client.name} has {client.streams} downloads under way, and {self.each} are allowed"
        if self.streams >= self.most:
            return f"{self.streams} downloads are under way, which is all that this hub gives at once"
        return None

    @contextmanager
    def download(self, client: Client) -> Iterator[None]:
        """Count one more download of the client for as long as the context lasts."""
        client.streams += 1
        self.streams += 1
        try:
            yield
        finally:
            client.streams -= 1
            self.streams -= 1


class Refusals:
    """Logs each refusal once for a peer and a reason: a device that tries all night must not fill the disk."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def log(self, peer: str, reason: str, message: str) -> None:
        """Log the message, unless this reason was logged for this peer."""
        if (peer, reason) in self._said:
            return
        if len(self._said) >= MAX_SAID:
            self._said.clear()
        self._said.add((peer, reason))
        _log.warning("refused %s: %s (said once)", peer, message)


def address(peer: str) -> str:
    """The address of gRPC's `peer()` without the port; of IPv6 the network, as one device has 2^64 addresses of it.

    >>> address("ipv4:10.0.0.7:50123"), address("ipv6:%5B2001:db8::1:2:3:4%5D:50123")
    ('10.0.0.7', '2001:db8::/64')
    """
    host = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return peer  # a Unix socket
    if found.version == 4:
        return host
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped) if mapped else str(ipaddress.ip_network((found, 64), strict=False))
