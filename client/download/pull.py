"""Resumable download of a tier's newest student from a hub (`server/hub/service.py`), without torch and Flower.

    DIR/<tier>.fpb                                  the newest bundle that verified; replaced atomically
    DIR/.<tier>-<version>-<sha256>.part             the bytes so far of a bundle whose download is unfinished
    DIR/.<tier>.lock                                locked while a pull is at work, so that two do not mix
    DIR/bases/<sha256>                              a link to pretrained weights that a bundle builds on, if one does

A link that breaks costs the bytes in flight: the next attempt, or the next pull, continues after the last byte written.
The name of the unfinished file says of which bundle it is a part, so that parts of two never mix. It becomes the
student once it has the announced SHA-256, passes every check of `reader.open_bundle`, and its manifest names this tier
and version: a signed bundle of another tier, or an old one, must not take its place.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc

from fedpress.client.backoff import Backoff
from fedpress.client.download import certificates
from fedpress.compression import files
from fedpress.compression.errors import FedpressError
from fedpress.compression.messages import hub_pb2, hub_pb2_grpc
from fedpress.compression.models.bundles import bases, container, reader
from fedpress.compression.models.bundles.errors import BundleError, NoBase
from fedpress.compression.models.bundles.manifest import TIER_NAME
from fedpress.compression.models.bundles.reader import Bundle

MAX_LIST_BYTES: Final = 1 << 22
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Limits of the wait before the second attempt, and before any, in seconds."""
TOKEN: Final = "[A-Za-z0-9._~+/=-]+"
CODE = grpc.StatusCode

Progress = Callable[[int, int], None]
"""Called with the bytes that have arrived and the bytes of the whole."""


class PullError(FedpressError):
    """The student cannot be downloaded. Each kind has an exit code of its own."""


class HubUnreachable(PullError):
    """No hub answers at the address, or the link to it keeps breaking."""

    exit_code = 3


class NotTrusted(PullError):
    """The hub's certificate is not trusted, or the hub does not trust this device's."""

    exit_code = 4


class NotAdmitted(PullError):
    """The hub wants a token, or does not know this one."""

    exit_code = 5


class NoSuchTier(PullError):
    """The hub has no such tier."""

    exit_code = 6


class DamagedDownload(PullError):
    """The bytes are not the announced bundle, or not a trustworthy one."""

    exit_code = 7


class CannotWrite(PullError):
    """The disk is full, or the folder cannot be written to."""

    exit_code = 8


class OlderVersion(PullError):
    """The hub's newest student is older than the one in the folder."""

    exit_code = 9


class BaseMissing(PullError):
    """The student builds on pretrained weights that this device has not, or has in another version."""

    exit_code = 10


class _Again(Exception):
    """Failure of an attempt that a later one may not have.

    Attributes:
        error: Error to raise after the last attempt.
        wait: Seconds that the hub asks to wait, or 0.
    """

    def __init__(self, error: PullError, wait: float = 0.0) -> None:
        super().__init__(str(error))
        self.error, self.wait = error, wait


@dataclass(frozen=True)
class HubConnection:
    """Address of a hub, and the credentials for it.

    Attributes:
        address: HOST:PORT.
        ca: PEM file of the authority that signed the hub's certificate; None: the authorities that gRPC knows.
        token: Token for `authorization: Bearer`; None: none is sent.
        certificate, key: PEM files of this device, for a hub that wants client certificates; both or none.
        insecure: Whether to connect without TLS.
        stall: Seconds without a byte after which an attempt is given up.

    Raises:
        PullError: The values contradict each other, or one is malformed.
    """

    address: str
    ca: Path | None = None
    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False
    stall: float = 120.0

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) <= 65535:
            raise PullError(f"hub {self.address!r}: expected HOST:PORT, such as hub.example.org:9443")
        if self.token is not None and not re.fullmatch(TOKEN, self.token):
            raise PullError("the token has characters that no token has: was another file given?")
        if (self.certificate is None) != (self.key is None):
            raise PullError("a client's certificate and its key go together: give both or none")
        if self.insecure and (self.ca or self.certificate):
            raise PullError("without TLS (--insecure) there are no certificates: leave out one or the other")

    def channel(self) -> grpc.aio.Channel:
        """Return a channel; nothing is connected yet.

        Raises:
            PullError: A file cannot be read.
        """
        options = [("grpc.max_receive_message_length", MAX_LIST_BYTES), ("grpc.use_local_subchannel_pool", 1)]
        if self.insecure:
            return grpc.aio.insecure_channel(self.address, options)
        credentials = grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))
        return grpc.aio.secure_channel(self.address, credentials, options)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of each request."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


class Pulled(NamedTuple):
    """Outcome of a pull: the bundle in the folder.

    Attributes:
        path: File with the bundle.
        version: Version of the student.
        size: Bytes of the file.
        received: Bytes that this pull downloaded; 0 where the folder had the newest.
        changed: Whether the bundle is new.
    """

    path: Path
    version: int
    size: int
    received: int
    changed: bool


def pull(
    hub: HubConnection,
    tier: str,
    folder: Path,
    *,
    public_key: bytes | None = None,
    allow_older: bool = False,
    retries: int = 8,
    limit: int = container.LIMIT,
    base: Path | None = None,
    on_progress: Progress = lambda done, size: None,
    on_wait: Callable[[str, float], None] = lambda reason, seconds: None,
) -> Pulled:
    """Download the newest bundle of a tier into a folder and verify it; the previous one stays until then.

    Args:
        hub: Hub to download from.
        tier: Name of the tier.
        folder: Folder for the bundle; made if it is absent.
        public_key: Ed25519 key, 32 bytes, that must have signed the bundle; None: it need not be signed.
        allow_older: Whether a lower version may replace the one in the folder.
        retries: Attempts after the first that may fail in a row without a new byte.
        limit: Most bytes that this device takes: of the file, and of what is decoded from it.
        base: Pretrained weights of this device, for a student that builds on them; None: those in `DIR/bases`.
        on_progress: Called after each part with the bytes that have arrived and those of the whole.
        on_wait: Called after a failed attempt with the reason and the seconds until the next one.

    Returns:
        The bundle in the folder.

    Raises:
        PullError: The download failed; a subclass for each kind of fault.
    """
    if not re.fullmatch(TIER_NAME, tier):
        raise PullError(f"tier {tier!r}: expected at most 64 letters, digits, - and _")
    with _writing(folder), _locked(folder, tier):
        download = _Pull(hub, tier, folder, public_key, allow_older, limit, base, on_progress)
        return asyncio.run(download.run(retries, on_wait))


class _Pull:
    """One pull; `received` counts its bytes, so that attempts with progress reset the back-off."""

    def __init__(
        self,
        hub: HubConnection,
        tier: str,
        folder: Path,
        public_key: bytes | None,
        allow_older: bool,
        limit: int,
        base: Path | None,
        on_progress: Progress,
    ) -> None:
        self.base = base
        self.hub, self.tier, self.folder = hub, tier, folder
        self.public_key, self.allow_older, self.limit = public_key, allow_older, limit
        self.on_progress = on_progress
        self.path = folder / f"{tier}.fpb"
        self.received = 0

    async def run(self, retries: int, on_wait: Callable[[str, float], None]) -> Pulled:
        failures, backoff = 0, Backoff(FIRST_WAIT, LONGEST_WAIT)
        while True:
            before = self.received
            try:
                return await self._attempt()
            except _Again as again:
                if self.received > before:
                    failures = 0
                    backoff.reset()
                failures += 1
                if failures > retries:
                    raise again.error from None
                seconds = again.wait + backoff.wait()
                on_wait(str(again), seconds)
                await asyncio.sleep(seconds)

    async def _attempt(self) -> Pulled:
        """Make one attempt; raise `_Again` where another one may succeed."""
        async with self.hub.channel() as channel:
            stub = hub_pb2_grpc.HubStub(channel)  # type: ignore[no-untyped-call]
            newest = await self._newest(stub)
            present = self._present(newest)
            if present is not None:
                return present
            part = self.folder / f".{self.tier}-{newest.version:010d}-{newest.sha256.hex()}.part"
            for other in self.folder.glob(f".{self.tier}-*.part"):
                if other != part and re.fullmatch(rf"\.{self.tier}-[0-9]+-[0-9a-f]{{64}}\.part", other.name):
                    other.unlink(missing_ok=True)
            resumed = await self._download(stub, newest, part)
        try:
            self._verify(part, newest)
        except DamagedDownload as error:
            part.unlink()
            if resumed:  # the earlier part may have been damaged on the disk, as by a power cut
                raise _Again(error) from None
            raise
        os.replace(part, self.path)
        files.sync_folder(self.folder)
        return Pulled(self.path, newest.version, newest.size, self.received, True)

    async def _newest(self, stub: Any) -> hub_pb2.Bundle:
        """Return the bundle that the hub announces as the newest of the tier."""
        request = hub_pb2.ListRequest(newest_only=True)
        try:
            reply = await stub.ListBundles(request, metadata=self.hub.metadata(), timeout=self.hub.stall)
        except grpc.aio.AioRpcError as error:
            raise await self._explained(error) from None
        by_tier = {bundle.tier: bundle for bundle in reply.bundles}
        if self.tier not in by_tier:
            tiers = ", ".join(sorted(by_tier)) or "none yet"
            raise NoSuchTier(f"the hub {self.hub.address} has no tier {self.tier!r}; it has: {tiers}")
        newest: hub_pb2.Bundle = by_tier[self.tier]
        if len(newest.sha256) != hashlib.sha256().digest_size or newest.size > self.limit:
            raise DamagedDownload(
                f"the hub announces a file of {newest.size:,} bytes with a digest of {len(newest.sha256)}: this device"
                f" takes at most {self.limit:,}, and 32; if that is its student, allow more (--largest-mib)"
            )
        return newest

    def _present(self, newest: hub_pb2.Bundle) -> Pulled | None:
        """Return the folder's bundle where that is the newest; None: there is something to download."""
        try:
            data = files.read_regular(self.path, container.MAX_BYTES)
            manifest = reader.open_bundle(data, limit=max(self.limit, len(data))).manifest
        except (FileNotFoundError, BundleError):
            return None  # absent, or damaged since: the new one replaces it
        if hashlib.sha256(data).digest() == newest.sha256:
            self._check(data, newest)
            return Pulled(self.path, manifest.version, len(data), 0, False)
        if newest.version < manifest.version and not self.allow_older:
            raise OlderVersion(
                f"{self.path} is version {manifest.version}, and the hub's newest is {newest.version}: it stays, as an"
                " old student may come from an attacker; if training began anew, take --allow-older"
            )
        return None

    async def _download(self, stub: Any, newest: hub_pb2.Bundle, part: Path) -> bool:
        """Bring the part to its full length, and return whether an earlier attempt began it."""
        with part.open("ab", buffering=0) as file:
            have = file.tell()
            if have > newest.size:
                file.truncate(0)
                have = 0
            resumed = have > 0
            self.on_progress(have, newest.size)
            free = shutil.disk_usage(self.folder).free
            if newest.size - have > free:
                raise CannotWrite(
                    f"version {newest.version} takes {newest.size - have:,} more bytes, and {self.folder} has room"
                    f" for {free:,}: nothing was changed"
                )
            request = hub_pb2.GetRequest(tier=self.tier, version=newest.version, offset=have)
            call = stub.GetBundle(request, metadata=self.hub.metadata())
            try:
                await self._take(call, newest, file, have)
            except grpc.aio.AioRpcError as error:
                raise await self._explained(error) from None
            except TimeoutError:
                raise _Again(HubUnreachable(f"no byte from {self.hub.address} for {self.hub.stall:g} s")) from None
            finally:
                call.cancel()
            os.fsync(file.fileno())
        return resumed

    async def _take(self, call: Any, newest: hub_pb2.Bundle, file: Any, have: int) -> None:
        first = True
        while True:
            async with asyncio.timeout(self.hub.stall):
                message = await call.read()
            if message is grpc.aio.EOF:
                break
            if first and (message.bundle.sha256, message.bundle.size) != (newest.sha256, newest.size):
                raise _Again(DamagedDownload(f"version {newest.version} changed while it was asked for"))
            first = False
            if have + len(message.data) > newest.size:
                raise DamagedDownload(f"the hub sends more than the {newest.size:,} bytes that it announced")
            data = memoryview(message.data)
            while data:  # a disk that is nearly full writes a part of it
                data = data[file.write(data) :]
            have += len(message.data)
            self.received += len(message.data)
            self.on_progress(have, newest.size)
        status = await call.code()
        if status != CODE.OK or have < newest.size:
            raise _Again(HubUnreachable(f"{self.hub.address} stopped after {have:,} of {newest.size:,} bytes"))

    def _verify(self, part: Path, newest: hub_pb2.Bundle) -> None:
        data = files.read_regular(part, self.limit)
        digest = hashlib.sha256(data).hexdigest()
        if digest != newest.sha256.hex():
            raise DamagedDownload(
                f"the {len(data):,} bytes have SHA-256 {digest}, the hub announced {newest.sha256.hex()}: damaged"
                " on the way or on a disk; pull again"
            )
        self._check(data, newest)

    def _check(self, data: bytes, newest: hub_pb2.Bundle) -> None:
        """Raise `Damaged` unless this is a bundle of the tier and version, signed by the key; and put it together.

        Raises:
            DamagedDownload: It is not.
            BaseMissing: It builds on pretrained weights that are not here; its bytes stay.
        """
        try:
            opened = reader.open_bundle(data, self.public_key, self.limit)
            manifest = opened.manifest
        except BundleError as error:
            raise DamagedDownload(
                f"version {newest.version} of {self.tier} from {self.hub.address}: {error}"
            ) from error
        if (manifest.tier, manifest.version) != (self.tier, newest.version):
            raise DamagedDownload(
                f"the hub gave version {manifest.version} of tier {manifest.tier!r} as version {newest.version} of"
                f" {self.tier!r}: a file in the wrong place, or an attack"
            )
        if manifest.base is not None:
            self._put_together(opened, manifest.base.sha256)

    def _put_together(self, opened: Bundle, sha256: str) -> None:
        """Check that a bundle and its base make a whole, and remember where the base is."""
        store = self.folder / bases.FOLDER
        try:
            path = bases.find(sha256, self.base, store)
            bases.assembled(opened._replace(onnx=None), path)  # a graph needs the package onnx, and is run elsewhere
        except NoBase as error:
            raise BaseMissing(f"version {opened.manifest.version} of {self.tier}: {error}") from None
        except BundleError as error:
            raise DamagedDownload(f"version {opened.manifest.version} of {self.tier}: {error}") from error
        if path.parent != store:
            store.mkdir(exist_ok=True)
            link = store / sha256
            if link.is_symlink():  # to where it was
                link.unlink()
            link.symlink_to(path.resolve())

    async def _explained(self, error: grpc.aio.AioRpcError) -> Exception:
        """Return the error to raise for a gRPC status."""
        code, details = error.code(), error.details() or ""
        if code in (CODE.UNAUTHENTICATED, CODE.PERMISSION_DENIED):
            hint = "" if self.hub.token else "; give one with --token-file or in FEDPRESS_TOKEN"
            return NotAdmitted(f"{self.hub.address}: {details}{hint}")
        if code == CODE.INVALID_ARGUMENT:
            return PullError(f"{self.hub.address}: {details}")
        if code == CODE.UNIMPLEMENTED:
            return HubUnreachable(f"{self.hub.address} answers, but is no hub of fedpress: {details}")
        if code == CODE.RESOURCE_EXHAUSTED:
            wait = dict(error.trailing_metadata() or ()).get("retry-after-ms", "0")
            seconds = min(int(wait) / 1000, 10 * LONGEST_WAIT) if str(wait).isdecimal() else 0.0
            return _Again(HubUnreachable(f"{self.hub.address} is busy: {details}"), seconds)
        if code == CODE.UNAVAILABLE and not self.received:
            why = await asyncio.to_thread(self._why_unavailable)
            if isinstance(why, NotTrusted):
                return why
            return _Again(why)
        return _Again(HubUnreachable(f"{self.hub.address}: {details or code.name}"))

    def _why_unavailable(self) -> PullError:
        """Return the cause of `UNAVAILABLE`, by a connection without gRPC, which has one status for all of them."""
        host, _, port = self.hub.address.rpartition(":")
        host = host.strip("[]")
        address = self.hub.address
        try:
            plain = socket.create_connection((host, int(port)), timeout=min(self.hub.stall, 20))
        except OSError as error:
            return HubUnreachable(
                f"no hub at {address}: {error.strerror or error}; is it running, and the address right?"
            )
        with plain:
            if self.hub.insecure:
                return HubUnreachable(f"{address} accepts connections and does not answer: does it want TLS?")
            try:
                context = ssl.create_default_context(cafile=self.hub.ca)
                context.set_alpn_protocols(["h2"])
                if self.hub.certificate and self.hub.key:
                    context.load_cert_chain(self.hub.certificate, self.hub.key)
                with context.wrap_socket(plain, server_hostname=host) as secured:
                    if not _greeted(secured):  # TLS 1.3 refuses a client's certificate after the handshake
                        ours = "it does not know that of this device" if self.hub.certificate else "none was given"
                        return NotTrusted(
                            f"{address} ends each connection after the handshake: it wants a client's"
                            f" certificate, and {ours}; see --client-certificate"
                        )
            except ssl.SSLCertVerificationError as error:
                return NotTrusted(
                    f"the certificate of {address} is not trusted: {certificates.reason(error, host, self.hub.ca)}"
                )
            except ssl.SSLError as error:
                return HubUnreachable(
                    f"{address} does not speak TLS as expected ({error.reason or error}): is it a hub without TLS"
                    " (--insecure)?"
                )
            except OSError as error:
                return HubUnreachable(f"{address} closes the connection: {error.strerror or error}")
        return HubUnreachable(f"{address} can be reached, and the link broke: try again")


def _greeted(secured: ssl.SSLSocket) -> bool:
    """Return whether the first byte of HTTP/2 comes, and not the end of the connection."""
    try:
        return bool(secured.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        PullError: The file cannot be read, or holds something else.
    """
    text = (_read(path) or b"").decode(errors="replace").strip()
    if not re.fullmatch(TOKEN, text):
        raise PullError(f"{path}: expected one token and nothing else")
    return text


def _read(path: Path | None) -> bytes | None:
    try:
        return files.read_regular(path, files.MOST_TEXT) if path else None
    except OSError as error:
        raise PullError(f"cannot read {path}: {error.strerror or error}") from None


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn errors of a full disk, or of a folder without permission, into `CannotWrite`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise CannotWrite(
            f"cannot write in {folder}: {error.strerror or error}; the previous student is unchanged, and the bytes"
            " that arrived are kept: the next pull continues after them"
        ) from error


@contextmanager
def _locked(folder: Path, tier: str) -> Iterator[None]:
    with (folder / f".{tier}.lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PullError(f"another pull of {tier} into {folder} is at work") from None
        yield
