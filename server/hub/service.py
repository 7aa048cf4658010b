"""The hub: a gRPC service from which devices download their students.

It serves the published bundles of a store (`messages/hub.proto`), and nothing else. One event loop has all downloads: a
download is one open file and one part of it in memory, so that hundreds at once need few threads and little memory.
docs/how-to/hub.md describes its use, and its protection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import logging
import os
import resource
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import grpc
import prometheus_client
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from fedpress.compression.errors import FedpressError
from fedpress.compression.messages import hub_pb2, hub_pb2_grpc
from fedpress.server.hub import admission
from fedpress.server.publishing import store
from fedpress.server.publishing.catalog import Catalog, Offered
from fedpress.server.publishing.store import ModelStore, NotPublished, StoreError

PART_BYTES: Final = 1 << 16
MAX_REQUEST_BYTES: Final = 1 << 12
STREAMS_OF_A_CONNECTION: Final = 16
READERS: Final = 4
M_ARENA_MAX: Final = -8  # of glibc's malloc.h
CLOSING_SECONDS: Final = 5.0
"""Limit for a refusal to reach a client that reads nothing, in seconds."""
REFLECTION_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 5.0
"""Wait that a client is told where all downloads are taken for an unknown time, in seconds."""
OPTIONS: Final = [
    ("grpc.so_reuseport", 0),  # a second hub on the same port must fail, not get half of the devices
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_metadata_size", 1 << 13),
    ("grpc.max_concurrent_streams", STREAMS_OF_A_CONNECTION),
    ("grpc.keepalive_time_ms", 60_000),  # devices vanish without a word
    ("grpc.keepalive_timeout_ms", 30_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
    ("grpc.server_handshake_timeout_ms", 30_000),
    ("grpc.max_connection_idle_ms", 5 * 60_000),
    ("grpc.max_connection_age_ms", 60 * 60_000),  # a limit for clients that block a connection
    ("grpc.max_connection_age_grace_ms", 60 * 60_000),
]
SERVICE: Final = hub_pb2.DESCRIPTOR.services_by_name["Hub"].full_name

_log = logging.getLogger(__name__)


class HubError(FedpressError):
    """The hub cannot be started with these settings."""


@dataclass(frozen=True)
class HubSettings:
    """Settings of a hub.

    Attributes:
        store: Folder of a `ModelStore`.
        listen: HOST:PORT; port 0: a free one.
        certificate, key: PEM files of the hub, read again when they change.
        client_ca: PEM file of the authority that signs client certificates; None: they are not required.
        tokens: File of tokens; None: they are not required.
        public: Whether everybody who reaches the hub may download.
        insecure: Whether to serve without TLS.
        downloads: Most simultaneous downloads of all clients.
        downloads_each: Most simultaneous downloads of one client.
        requests: Requests a minute, of one client.
        rate: Bytes a second, of one client; None: no limit.
        stall: Seconds in which a client must read a part of `PART_BYTES`.
        grace: Seconds that downloads under way get when the hub is stopped.
        metrics: HOST:PORT for Prometheus; None: there are no metrics.
    """

    store: Path
    listen: str = "127.0.0.1:9443"
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    tokens: Path | None = None
    public: bool = False
    insecure: bool = False
    downloads: int = 256
    downloads_each: int = 4
    requests: int = 60
    rate: int | None = None
    stall: float = 120.0
    grace: float = 10.0
    metrics: str | None = None


class Metrics:
    """Metrics for Prometheus."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.downloads = prometheus_client.Counter(
            "fedpress_hub_downloads",
            "Downloads that ended, by tier and how: complete, cut, stalled, stopped, or damaged.",
            ["tier", "outcome"],
            registry=self.registry,
        )
        self.bytes = prometheus_client.Counter(
            "fedpress_hub_bytes", "Bytes of bundles that were sent, by tier.", ["tier"], registry=self.registry
        )
        self.streams = prometheus_client.Gauge("fedpress_hub_streams", "Downloads under way.", registry=self.registry)
        self.refused = prometheus_client.Counter(
            "fedpress_hub_refused", "Requests that were refused, by reason.", ["reason"], registry=self.registry
        )


class Door:
    """Admission of clients, for all services of a hub.

    Args:
        settings: Settings of the hub.
        metrics: Counts refusals.
    """

    def __init__(self, settings: HubSettings, metrics: Metrics) -> None:
        self.tokens = admission.Tokens(settings.tokens) if settings.tokens else None
        self.clients = admission.Clients(settings.downloads, settings.downloads_each, settings.requests, settings.rate)
        self._refusals = admission.Refusals()
        self._metrics = metrics

    async def admit(self, context: Any) -> admission.Caller:
        """Return the client of a request, which is refused where the client is unknown or asks too often."""
        peer = admission.address(context.peer())
        name = f"address {peer}"
        if context.peer_identities():
            names = context.auth_context().get("x509_common_name") or context.peer_identities()
            name = f"certificate {names[0].decode(errors='replace')}"
        if self.tokens:
            scheme, _, token = dict(context.invocation_metadata() or ()).get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not token:
                await self.refuse(
                    context, grpc.StatusCode.UNAUTHENTICATED, "no token",
                    "this hub wants a token, and none was sent",
                )  # fmt: skip
            owner = self.tokens.name_of(token.strip())
            if owner is None:
                await self.refuse(
                    context, grpc.StatusCode.UNAUTHENTICATED, "unknown token",
                    "the token is not one of this hub's: mistyped, or revoked?",
                )  # fmt: skip
            name = f"token {owner}"
        client = self.clients.get(name)
        wait = client.requests.take(1, time.monotonic())
        if wait:
            await self.refuse(
                context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests",
                f"{name} asks more than {60 * client.requests.rate:.0f} times a minute", wait,
            )  # fmt: skip
        return client

    async def refuse(
        self, context: Any, code: grpc.StatusCode, reason: str, message: str, wait: float | None = None
    ) -> NoReturn:
        """Refuse a request with a status; log it once for this peer and reason.

        Args:
            context: gRPC's context of the request.
            code: The status.
            reason: One of a few words, for log and metrics.
            message: The particulars, which the client gets.
            wait: Seconds after which the client may try again; None: it is not told.
        """
        self.log_refusal(context, reason, message)
        await context.abort(code, message, () if wait is None else (("retry-after-ms", str(int(1000 * wait) + 1)),))
        raise AssertionError("abort does not return")

    def log_refusal(self, context: Any, reason: str, message: str) -> None:
        """Count a refusal, and log the first of its kind.

        Args:
            context: gRPC's context of the request.
            reason: One of a few words.
            message: The particulars.
        """
        self._refusals.log(admission.address(context.peer()), reason, message)
        self._metrics.refused.labels(reason).inc()


class Hub(hub_pb2_grpc.HubServicer):
    """The service of `messages/hub.proto`.

    Args:
        catalog: Catalog of the bundles on offer.
        door: Admission of clients.
        metrics: Counts downloads and bytes.
        stall: Seconds in which a client must read a part.
    """

    def __init__(self, catalog: Catalog, door: Door, metrics: Metrics, stall: float) -> None:
        self._catalog, self._door, self._metrics, self._stall = catalog, door, metrics, stall
        self._readers = ThreadPoolExecutor(READERS, "reader")

    async def ListBundles(self, request: hub_pb2.ListRequest, context: Any) -> hub_pb2.ListReply:
        """List the bundles on offer.

        Args:
            request: The tier, or all, and whether only the newest version of each is wanted.
            context: gRPC's context of the request.
        """
        await self._door.admit(context)
        bundles = await self._catalog.offered(request.tier, request.newest_only)
        return hub_pb2.ListReply(bundles=[_about(bundle) for bundle in bundles])

    async def GetBundle(self, request: hub_pb2.GetRequest, context: Any) -> None:
        """Send one bundle, from an offset on.

        Args:
            request: Tier, version and offset in bytes.
            context: gRPC's context of the request.
        """
        client = await self._door.admit(context)
        try:
            offered = await self._catalog.find(request.tier, request.version)
        except NotPublished as error:
            await self._door.refuse(context, grpc.StatusCode.NOT_FOUND, "not published", str(error))
        except StoreError as error:
            await self._door.refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "no name of a tier", str(error))
        if request.offset > offered.size:
            await self._door.refuse(
                context, grpc.StatusCode.OUT_OF_RANGE, "offset",
                f"offset {request.offset:,} is beyond the end of version {offered.version} at {offered.size:,} bytes:"
                " is what the client has of another version?",
            )  # fmt: skip
        busy = self._door.clients.why_not(client)
        if busy:
            await self._door.refuse(
                context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many downloads", busy, RETRY_SECONDS
            )
        outcome = "cut"  # by the client or the network: gRPC cancels the call
        try:
            with self._door.clients.download(client), self._metrics.streams.track_inprogress():
                outcome = await self._send(context, client, offered, request.offset)
        finally:
            self._metrics.downloads.labels(offered.tier, outcome).inc()
        if outcome == "stalled":
            await self._hang_up(context)
        if outcome == "damaged":
            await context.abort(grpc.StatusCode.DATA_LOSS, "the file is gone, or shorter than it was; ask again")

    async def _send(self, context: Any, client: admission.Caller, offered: Offered, offset: int) -> str:
        """Send the file from an offset on, and return how it ended."""
        sent = self._metrics.bytes.labels(offered.tier)
        try:
            bundle = store.open_bundle(offered.path)
        except OSError:  # it was removed, or swapped for a link, since it was offered
            return "damaged"
        with bundle as file:
            part = hub_pb2.Part(bundle=_about(offered))
            while True:
                try:
                    async with asyncio.timeout(self._stall):
                        await context.write(part)
                except TimeoutError:
                    return "stalled"
                sent.inc(len(part.data))
                if offset == offered.size:
                    return "complete"
                data = await self._read(file.fileno(), min(PART_BYTES, offered.size - offset), offset)
                if not data:
                    return "damaged"
                if client.bytes:
                    await asyncio.sleep(client.bytes.owe(len(data), time.monotonic()))
                part = hub_pb2.Part(data=data)
                offset += len(data)

    async def _read(self, descriptor: int, length: int, offset: int) -> bytes:
        """Read in a thread: a slow disk must not stop the other downloads."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, os.pread, descriptor, length, offset)

    async def _hang_up(self, context: Any) -> NoReturn:
        """End the call of a client that has read nothing for too long, with a message if it reads that."""
        message = f"nothing was read for {self._stall:g} s: resume from the present offset"
        self._door.log_refusal(context, "stalled", message)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_SECONDS):
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, message)
        raise asyncio.CancelledError


def _about(offered: Offered) -> hub_pb2.Bundle:
    return hub_pb2.Bundle(
        tier=offered.tier,
        version=offered.version,
        size=offered.size,
        sha256=offered.sha256,
        created=offered.created,
    )


class _Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    """gRPC reflection, for admitted clients."""

    def __init__(self, door: Door) -> None:
        super().__init__([SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME])
        self._door = door

    async def ServerReflectionInfo(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        await self._door.admit(context)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REFLECTION_SECONDS):
                async for reply in super().ServerReflectionInfo(requests, context):
                    yield reply


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """Health check, without a token. `Watch` is refused: it would let anybody keep requests open."""

    async def Watch(self, request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask with Check, again and again")


async def serve(settings: HubSettings, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; downloads under way then get `grace` seconds, a second signal ends them at once.

    Args:
        settings: Settings of the hub.
        say: Called with a line for the user: where the hub listens, and that it stops.

    Raises:
        HubError: The settings contradict each other, a file cannot be used, or the port is taken.
        TokenError: The file of tokens cannot be used.
    """
    _check(settings)
    _one_arena()
    metrics = Metrics()
    door = Door(settings, metrics)
    catalog = Catalog(ModelStore(settings.store))
    newest = await catalog.offered(newest_only=True)  # computes their digests before a client waits for them
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=2 * settings.downloads + 256)
    hub_pb2_grpc.add_HubServicer_to_server(Hub(catalog, door, metrics, settings.stall), server)  # type: ignore[no-untyped-call]
    healthy = _Health()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(door), server)
    for service in ("", SERVICE):
        await healthy.set(service, health_pb2.HealthCheckResponse.SERVING)
    _allow_files(4 * settings.downloads + 256)
    try:
        if settings.insecure:
            port = server.add_insecure_port(settings.listen)
        else:
            port = server.add_secure_port(settings.listen, _credentials(settings))
    except RuntimeError:
        raise HubError(
            f"cannot listen on {settings.listen}: is the port taken, or the address not this machine's?"
        ) from None
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    closing = _serve_metrics(settings, metrics)
    await server.start()
    host = settings.listen.rpartition(":")[0]
    tiers = ", ".join(bundle.tier for bundle in newest) or "nothing yet"
    say(f"hub listens on {host}:{port} ({_guards(settings, door)}); tiers in {settings.store}: {tiers}")
    try:
        await stop.wait()
        stop.clear()
        under_way = door.clients.streams
        say(f"stopping: {under_way} downloads under way get {settings.grace:g} s" if under_way else "stopping")
        await healthy.enter_graceful_shutdown()
        stopped = asyncio.ensure_future(server.stop(settings.grace))
        again = asyncio.ensure_future(stop.wait())
        await asyncio.wait([stopped, again], return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if not stopped.done():
            await server.stop(None)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:  # canceled downloads: gRPC complains where the loop ends before they do
            await asyncio.wait(left, timeout=CLOSING_SECONDS)
    finally:
        closing()


def _check(settings: HubSettings) -> None:
    if not settings.store.is_dir():
        raise HubError(f"there is no folder {settings.store}: a run has its students in RUN/bundles; is it mistyped?")
    host, local = _host(settings.listen)
    if settings.metrics is not None:
        _host(settings.metrics)
    given = [name for name in ("certificate", "key", "client_ca") if getattr(settings, name)]
    if settings.insecure and given:
        raise HubError(
            f"--insecure is without TLS, and --{given[0].replace('_', '-')} is for TLS: leave out one of them"
        )
    if not settings.insecure and not (settings.certificate and settings.key):
        raise HubError(
            "TLS needs --certificate and --key (PEM files); --insecure does without, and then everybody on the way can"
            " read and change what devices get"
        )
    if settings.public and (settings.tokens or settings.client_ca):
        raise HubError("--public lets everybody in: leave it out where --tokens or --client-ca says who may come")
    if not (settings.tokens or settings.client_ca or settings.public or (settings.insecure and local)):
        raise HubError(
            "who may download? --tokens FILE (see `fedpress hub-token`), --client-ca FILE, or --public for everybody"
        )
    if settings.insecure and not local:
        _log.warning(
            "NO TLS on %s: everybody on the way can read%s and change what devices get; devices should insist on"
            " signed bundles (fedpress pull --verify-key)", host, " tokens" if settings.tokens else "",
        )  # fmt: skip


def _host(listen: str) -> tuple[str, bool]:
    """Return the host of HOST:PORT, and whether only this machine can reach it."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise HubError(f"{listen!r}: expected HOST:PORT, such as 0.0.0.0:9443 or [::1]:9443; port 0 is a free one")
    plain = host.strip("[]")
    try:
        return plain, ipaddress.ip_address(plain).is_loopback
    except ValueError:
        return plain, plain == "localhost"


def _guards(settings: HubSettings, door: Door) -> str:
    guards = ["no TLS" if settings.insecure else "TLS"]
    if settings.client_ca:
        guards.append("clients' certificates")
    if door.tokens:
        guards.append(f"{len(door.tokens)} tokens")
    return ", ".join(guards) if len(guards) > 1 else f"{guards[0]}, open to all who reach it"


def _credentials(settings: HubSettings) -> grpc.ServerCredentials:
    """Return the hub's credentials, which take up a renewed certificate without a restart."""
    certificate, key, ca = settings.certificate, settings.key, settings.client_ca
    assert certificate and key
    paths = [path for path in (certificate, key, ca) if path]

    def state() -> list[tuple[int, int]]:
        return [(path.stat().st_mtime_ns, path.stat().st_ino) for path in paths]

    def read() -> Any:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise HubError(
                f"certificate {certificate} with key {key}: {error.strerror or error}; expected PEM files, the key"
                " without a passphrase and of that certificate"
            ) from None
        try:
            if ca:
                context.load_verify_locations(ca)
        except (OSError, ssl.SSLError) as error:
            raise HubError(f"--client-ca {ca}: {error.strerror or error}; expected certificates as PEM") from None
        return grpc.ssl_server_certificate_configuration(
            [(key.read_bytes(), certificate.read_bytes())], ca.read_bytes() if ca else None
        )

    first = read()
    seen = state()

    def renewed() -> Any:
        """Return renewed credentials, None where nothing has changed; gRPC calls this before each handshake."""
        nonlocal seen
        try:
            now = state()
            if now == seen:
                return None
            seen = now
            renewal = read()
        except (HubError, OSError) as error:
            _log.error("the hub goes on with the certificate that it has: %s", error)
            return None
        _log.info("a renewed certificate is in use")
        return renewal

    return grpc.dynamic_ssl_server_credentials(first, renewed, require_client_authentication=ca is not None)


def _one_arena() -> None:
    """Use one heap for all threads: glibc has one for each, and parts of files would fill all of them."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _allow_files(count: int) -> None:
    """Raise the limit of open files to `count`, as far as the system allows: a download is a connection and a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > soft:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _serve_metrics(settings: HubSettings, metrics: Metrics) -> Callable[[], None]:
    if settings.metrics is None:
        return lambda: None
    host, _, port = settings.metrics.rpartition(":")
    try:
        server, thread = prometheus_client.start_http_server(int(port), host.strip("[]"), metrics.registry)
    except OSError as error:
        raise HubError(f"--metrics {settings.metrics}: {error.strerror or error}") from None

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close
