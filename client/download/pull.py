"""The newest student of a tier, downloaded from a hub (`server/hub/service.py`), without torch and Flower.

    DIR/<tier>.fpb                                  the newest bundle that verified; replaced at once or not at all
    DIR/.<tier>-<version>-<sha256>.part             what there is so far of one that is on its way
    DIR/.<tier>.lock                                held while a pull is at work, so that two do not mix

A link that breaks costs what was in flight: the next attempt, or the next pull, goes on after the last byte that was
written. The name of the unfinished file says of which bundle it is a part, so that parts of two never meet. It becomes
the student once it has the announced SHA-256, every check of `reader.open_bundle` holds, and it says itself that it is
of this tier and version: a signed bundle of another tier, or an old one, must not come in its place.
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
from fedpress.compression.models.bundles import container, reader
from fedpress.compression.models.bundles.errors import BundleError
from fedpress.compression.models.bundles.manifest import TIER_NAME

MAX_BYTES: Final = container.MAX_MANIFEST_BYTES + container.MAX_WEIGHTS_BYTES + container.MAX_ONNX_BYTES + 4096
MAX_LIST_BYTES: Final = 1 << 22
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second attempt, and before any."""
TOKEN: Final = "[A-Za-z0-9._~+/=-]+"
CODE = grpc.StatusCode

Progress = Callable[[int, int], None]
"""Told how many bytes of how many there are."""


class PullError(FedpressError):
    """The student cannot be downloaded. Each kind has an exit code of its own."""


class Unreachable(PullError):
    """There is no hub at the address, or the link to it keeps breaking."""

    exit_code = 3


class NotTrusted(PullError):
    """The hub's certificate is not one to trust, or it does not trust ours."""

    exit_code = 4


class NotAdmitted(PullError):
    """The hub wants a token, or does not know this one."""

    exit_code = 5


class NoSuchTier(PullError):
    """The hub has no such tier."""

    exit_code = 6


class Damaged(PullError):
    """What arrived is not the bundle that was announced, or not one that is to be trusted."""

    exit_code = 7


class CannotWrite(PullError):
    """The disk is full, or the folder is not to be written in."""

    exit_code = 8


class OlderVersion(PullError):
    """The hub's newest is older than what is here."""

    exit_code = 9


class _Again(Exception):
    """An attempt failed in a way that may pass.

    Attributes:
        error: What to say if it does not.
        wait: Seconds that the hub asks for, or 0.
    """

    def __init__(self, error: PullError, wait: float = 0.0) -> None:
        super().__init__(str(error))
        self.error, self.wait = error, wait


@dataclass(frozen=True)
class Hub:
    """Where a hub is, and how it is spoken to.

    Attributes:
        address: HOST:PORT.
        ca: PEM file of who signed the hub's certificate; None: the authorities that gRPC knows.
        token: For `authorization: Bearer`.
        certificate, key: PEM files of this device, where the hub asks for them.
        insecure: Without TLS.
        stall: Seconds without a byte after which an attempt is given up.
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
            raise PullError("the token holds something that no token has: was another file given?")
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
        """What goes with each request."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


class Pulled(NamedTuple):
    """What is in the folder now.

    Attributes:
        path: The bundle.
        version: Of the student.
        size: Of the file, in bytes.
        received: Bytes that this pull took for it; 0 if it was there already.
        changed: Whether it is new.
    """

    path: Path
    version: int
    size: int
    received: int
    changed: bool


def pull(
    hub: Hub,
    tier: str,
    folder: Path,
    *,
    public_key: bytes | None = None,
    allow_older: bool = False,
    retries: int = 8,
    on_progress: Progress = lambda done, size: None,
    on_wait: Callable[[str, float], None] = lambda reason, seconds: None,
) -> Pulled:
    """Make `folder` hold the newest bundle of a tier, verified; what it held stays until then.

    Args:
        hub: Where from.
        tier: Of which class of devices.
        folder: Made if it is absent.
        public_key: Ed25519, 32 bytes, of who must have signed it. None: whoever made it.
        allow_older: Whether a version below the one that is here may replace it.
        retries: Attempts in a row that bring not one byte, after the first.
        on_progress: Told of each part.
        on_wait: Told why an attempt failed, and how many seconds later the next one begins.

    Raises:
        PullError: One of its kinds for each fault.
    """
    if not re.fullmatch(TIER_NAME, tier):
        raise PullError(f"tier {tier!r}: expected at most 64 letters, digits, - and _")
    with _writing(folder), _locked(folder, tier):
        one = _Pull(hub, tier, folder, public_key, allow_older, on_progress)
        return asyncio.run(one.run(retries, on_wait))


class _Pull:
    """One pull; `received` is what tells progress from standing still."""

    def __init__(
        self, hub: Hub, tier: str, folder: Path, public_key: bytes | None, allow_older: bool, on_progress: Progress
    ) -> None:
        self.hub, self.tier, self.folder = hub, tier, folder
        self.public_key, self.allow_older, self.on_progress = public_key, allow_older, on_progress
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
        """Raises:
        _Again: It may help to try again.
        """
        async with self.hub.channel() as channel:
            stub = hub_pb2_grpc.HubStub(channel)  # type: ignore[no-untyped-call]
            newest = await self._newest(stub)
            held = self._held(newest)
            if held is not None:
                return held
            part = self.folder / f".{self.tier}-{newest.version:010d}-{newest.sha256.hex()}.part"
            for other in self.folder.glob(f".{self.tier}-*.part"):
                if other != part and re.fullmatch(rf"\.{self.tier}-[0-9]+-[0-9a-f]{{64}}\.part", other.name):
                    other.unlink(missing_ok=True)
            resumed = await self._download(stub, newest, part)
        try:
            self._verify(part, newest)
        except Damaged as error:
            part.unlink()
            if resumed:  # the part of before may have been damaged on the disk, as by a power cut
                raise _Again(error) from None
            raise
        os.replace(part, self.path)
        files.sync_folder(self.folder)
        return Pulled(self.path, newest.version, newest.size, self.received, True)

    async def _newest(self, stub: Any) -> hub_pb2.Bundle:
        """What the hub announces as the newest of the tier."""
        request = hub_pb2.ListRequest(newest_only=True)
        try:
            reply = await stub.ListBundles(request, metadata=self.hub.metadata(), timeout=self.hub.stall)
        except grpc.aio.AioRpcError as error:
            raise await self._explained(error) from None
        found = {one.tier: one for one in reply.bundles}
        if self.tier not in found:
            there = ", ".join(sorted(found)) or "none yet"
            raise NoSuchTier(f"the hub {self.hub.address} has no tier {self.tier!r}; it has: {there}")
        newest: hub_pb2.Bundle = found[self.tier]
        if len(newest.sha256) != hashlib.sha256().digest_size or newest.size > MAX_BYTES:
            raise Damaged(
                f"the hub announces a file of {newest.size:,} bytes with a digest of {len(newest.sha256)}: a bundle has"
                f" at most {MAX_BYTES:,}, and 32"
            )
        return newest

    def _held(self, newest: hub_pb2.Bundle) -> Pulled | None:
        """What is here, if that is the newest already; None: something is to be downloaded."""
        try:
            data = self.path.read_bytes()
            manifest = reader.open_bundle(data).manifest
        except (FileNotFoundError, BundleError):
            return None  # nothing, or damaged since: the one to come takes its place
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
        """Bring the part to its full length; return whether some of it was there before."""
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
                raise _Again(Unreachable(f"no byte from {self.hub.address} for {self.hub.stall:g} s")) from None
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
                raise _Again(Damaged(f"version {newest.version} changed while it was asked for"))
            first = False
            if have + len(message.data) > newest.size:
                raise Damaged(f"the hub sends more than the {newest.size:,} bytes that it announced")
            data = memoryview(message.data)
            while data:  # a disk that is nearly full takes a part of it
                data = data[file.write(data) :]
            have += len(message.data)
            self.received += len(message.data)
            self.on_progress(have, newest.size)
        status = await call.code()
        if status != CODE.OK or have < newest.size:
            raise _Again(Unreachable(f"{self.hub.address} stopped after {have:,} of {newest.size:,} bytes"))

    def _verify(self, part: Path, newest: hub_pb2.Bundle) -> None:
        data = part.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != newest.sha256.hex():
            raise Damaged(
                f"the {len(data):,} bytes have SHA-256 {found}, the hub announced {newest.sha256.hex()}: damaged on the"
                " way or on a disk; pull again"
            )
        self._check(data, newest)

    def _check(self, data: bytes, newest: hub_pb2.Bundle) -> None:
        """Raises:
        Damaged: It is no bundle, not signed by the key, or of another tier or version than asked for.
        """
        try:
            manifest = reader.open_bundle(data, self.public_key).manifest
        except BundleError as error:
            raise Damaged(f"version {newest.version} of {self.tier} from {self.hub.address}: {error}") from error
        if (manifest.tier, manifest.version) != (self.tier, newest.version):
            raise Damaged(
                f"the hub gave version {manifest.version} of tier {manifest.tier!r} as version {newest.version} of"
                f" {self.tier!r}: a file in the wrong place, or an attack"
            )

    async def _explained(self, error: grpc.aio.AioRpcError) -> Exception:
        """The error to raise for a gRPC status."""
        code, said = error.code(), error.details() or ""
        if code in (CODE.UNAUTHENTICATED, CODE.PERMISSION_DENIED):
            hint = "" if self.hub.token else "; give one with --token-file or in FEDPRESS_TOKEN"
            return NotAdmitted(f"{self.hub.address}: {said}{hint}")
        if code == CODE.INVALID_ARGUMENT:
            return PullError(f"{self.hub.address}: {said}")
        if code == CODE.UNIMPLEMENTED:
            return Unreachable(f"{self.hub.address} answers, but is no hub of fedpress: {said}")
        if code == CODE.RESOURCE_EXHAUSTED:
            wait = dict(error.trailing_metadata() or ()).get("retry-after-ms", "0")
            seconds = min(int(wait) / 1000, 10 * LONGEST_WAIT) if str(wait).isdecimal() else 0.0
            return _Again(Unreachable(f"{self.hub.address} is busy: {said}"), seconds)
        if code == CODE.UNAVAILABLE and not self.received:
            why = await asyncio.to_thread(self._why_unavailable)
            if isinstance(why, NotTrusted):
                return why
            return _Again(why)
        return _Again(Unreachable(f"{self.hub.address}: {said or code.name}"))

    def _why_unavailable(self) -> PullError:
        """gRPC has one status for a hub that is not there and for one that is not to be trusted: look once more."""
        host, _, port = self.hub.address.rpartition(":")
        host = host.strip("[]")
        address = self.hub.address
        try:
            plain = socket.create_connection((host, int(port)), timeout=min(self.hub.stall, 20))
        except OSError as error:
            return Unreachable(f"no hub at {address}: {error.strerror or error}; is it running, and the address right?")
        with plain:
            if self.hub.insecure:
                return Unreachable(f"{address} accepts connections and does not answer: does it want TLS?")
            try:
                context = ssl.create_default_context(cafile=self.hub.ca)
                context.set_alpn_protocols(["h2"])
                if self.hub.certificate and self.hub.key:
                    context.load_cert_chain(self.hub.certificate, self.hub.key)
                with context.wrap_socket(plain, server_hostname=host) as secured:
                    if not _greeted(secured):  # in TLS 1.3 a refusal of our certificate comes after the handshake
                        ours = (
                            "that of this device is not one that it knows" if self.hub.certificate else "none was given"
                        )
                        return NotTrusted(
                            f"{address} ends each connection once it has seen who is there: it wants a client's"
                            f" certificate, and {ours}; see --client-certificate"
                        )
            except ssl.SSLCertVerificationError as error:
                return NotTrusted(
                    f"the certificate of {address} is not trusted: {certificates.reason(error, host, self.hub.ca)}"
                )
            except ssl.SSLError as error:
                return Unreachable(
                    f"{address} does not speak TLS as expected ({error.reason or error}): is it a hub without TLS"
                    " (--insecure)?"
                )
            except OSError as error:
                return Unreachable(f"{address} closes the connection: {error.strerror or error}")
        return Unreachable(f"{address} can be reached, and the link broke: try again")


def _greeted(secured: ssl.SSLSocket) -> bool:
    """Whether the first byte of HTTP/2 comes, and not the end of the connection."""
    try:
        return bool(secured.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        PullError: There is none.
    """
    text = (_read(path) or b"").decode(errors="replace").strip()
    if not re.fullmatch(TOKEN, text):
        raise PullError(f"{path} does not hold one token, and nothing else")
    return text


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise PullError(f"cannot read {path}: {error.strerror or error}") from None


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say what a full disk or a folder that cannot be written means."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise CannotWrite(
            f"cannot write in {folder}: {error.strerror or error}; the student that was there is as it was, and what"
            " has arrived is kept: the next pull goes on after it"
        ) from error


@contextmanager
def _locked(folder: Path, tier: str) -> Iterator[None]:
    with (folder / f".{tier}.lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PullError(f"another pull of {tier} into {folder} is at work") from None
        yield
