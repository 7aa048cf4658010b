"""Admission to the SuperLink: who a request is from is checked in its headers, before anything of its body is read.

Flower serves nodes (`/v1/fleet`), operators (`/v1/control`) and its own processes (`/v1/runtime`) on one port. It reads
a whole request, of any size, before it asks who sends it, and asks operators for nothing. Here

* a node's request must carry a signature of the present time by a registered key. Flower checks the same once more,
  and the node's id, which is in the body;
* an operator's request must carry the operators' token (`Authorization: Bearer`), and come from one of their networks;
* a process's request must come from this machine and carry its task's token; only the one that asks for tasks has
  none, and is signed with a secret that Flower checks;
* what has no such proof and is small, such as a node's question whether its key is registered, is left to Flower.

A body is read with a limit of its size, of the time without a byte, and of the bytes in memory: of each peer, and of
all.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final, NamedTuple, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedpress.simulations.deploy.connections import SCOPE_KEY, Connection

SMALL_BYTES: Final = 4096
"""Largest request without proof that is left to Flower."""
STALL_SECONDS: Final = 30.0
"""Time limit without a byte of a request; Flower's nodes give up a write after as long."""
LEAST_RATE: Final = 1024.0
"""Least mean rate of a request's body after `STALL_SECONDS`, in bytes a second."""
ROOM_SECONDS: Final = 30.0
"""Time that a request waits for room in memory."""
RECHECK_SECONDS: Final = 60.0
"""Time after which the key of an open connection is looked up again."""
MOST_LOGGED: Final = 1000
"""Number of refused peers that are logged: an attacker with many must not fill memory or disk."""
SAYS: Final = "fedpress: "
"""Prefix of log lines for the operator, which the service reports."""
FLEET: Final = "/v1/fleet/"
CONTROL: Final = "/v1/control/"
RUNTIME: Final = "/v1/runtime/"
PROCESSES: Final = "processes"
"""Name of Flower's own processes as a peer."""
OPERATORS: Final = "operators"
"""Name of the operators as a peer."""


class Authority(Protocol):
    """What Flower knows of nodes and tasks (`_flower.Authority`); called in a thread."""

    def claimed_key(self, headers: Mapping[str, str]) -> bytes | None:
        """Return the public key that the headers name; None: they name none."""

    def is_signed(self, headers: Mapping[str, str]) -> bool:
        """Return whether the owner of the key has signed the headers just now."""

    def is_registered(self, scope: Scope, key: bytes) -> bool:
        """Return whether a public key is that of a registered node."""

    def is_task(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        """Return whether the headers carry the token of a task that is under way."""


class Refusal(NamedTuple):
    """Answer to a request that is not served.

    Attributes:
        status: Of HTTP.
        text: Reason.
        logged: Whether the operator is told.
    """

    status: int
    text: str
    logged: bool = True


class Room:
    """Bytes of requests in memory, of each peer and of all.

    Args:
        each: Most bytes of one peer.
        most: Most bytes of all.
    """

    def __init__(self, each: int, most: int) -> None:
        self._each, self._most = each, most
        self._held = Counter[str]()
        self._freed = asyncio.Condition()

    async def take(self, peer: str, count: int) -> bool:
        """Take room, wait for it where there is none; return False where it did not come in time."""
        try:
            async with asyncio.timeout(ROOM_SECONDS), self._freed:
                await self._freed.wait_for(lambda: self._fits(peer, count))
                self._held[peer] += count
        except TimeoutError:
            return False
        return True

    async def give_back(self, peer: str, count: int) -> None:
        """Return what a peer took."""
        async with self._freed:
            self._held[peer] -= count
            if not self._held[peer]:
                del self._held[peer]
            self._freed.notify_all()

    @property
    def held(self) -> int:
        """Bytes that are taken."""
        return self._held.total()

    def _fits(self, peer: str, count: int) -> bool:
        return self._held[peer] + count <= self._each and self._held.total() + count <= self._most


class Admission:
    """ASGI middleware that serves only who may be served, and only as much as there is room for.

    Args:
        app: The application behind it.
        authority: Flower's knowledge of nodes and tasks.
        networks: Networks of operators, such as "192.0.2.0/24".
        token: The operators' token.
        most: Largest size of a node's request in bytes; all together may have twice as many in memory.
    """

    def __init__(self, app: ASGIApp, authority: Authority, networks: Sequence[str], token: str, most: int) -> None:
        self._app = app
        self._authority = authority
        self._networks = [ipaddress.ip_network(text) for text in networks]
        self._token = token.encode()
        self._most = most
        self._room = Room(most, 2 * most)
        self._looked_up: dict[bytes, float] = {}  # by key: when it was last found registered
        self._logged: set[tuple[str, int]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        connection: Connection | None = scope.get(SCOPE_KEY)
        peer, refusal = await self._peer(scope, headers, connection.peer if connection else "")
        length = headers.get("content-length", "0")
        count = int(length) if length.isascii() and length.isdigit() else self._most + 1
        if refusal is None:
            refusal = self._too_large(scope, headers, count)
        if refusal is None and not peer and count > SMALL_BYTES:
            refusal = Refusal(401, f"a request of {count:,} bytes without a valid proof of who sends it is not read")
        if refusal is not None:
            await self._refuse(refusal, scope, receive, send)
            return
        if peer and connection is not None:
            connection.prove(peer)
        async with AsyncExitStack() as stack:
            room = self._room if scope["path"].startswith(FLEET) else None
            pieces = await _body(peer or _address(scope), count, receive, room, stack)
            if isinstance(pieces, Refusal):
                await self._refuse(pieces, scope, receive, send)
            elif pieces is not None:
                await self._app(scope, _again(pieces, receive), send)

    async def _peer(self, scope: Scope, headers: Headers, known: str) -> tuple[str, Refusal | None]:
        """Return who a request is from, empty where that is for Flower to find out; or why it is refused.

        `known` is who has sent another request over the same connection.
        """
        path = scope["path"]
        if path.startswith(FLEET):
            return await self._node(scope, headers, known)
        if not self._is_operators(scope):
            return "", Refusal(403, f"{path} is for operators; see `operators` in the server's settings", logged=False)
        if path.startswith(RUNTIME):
            proved = known == PROCESSES or await run_in_threadpool(self._authority.is_task, scope, headers)
            return PROCESSES if proved else "", None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._token):
            return OPERATORS, None
        text = f"{path} needs the operators' token: `operator.token` in the server's folder of keys"
        return "", Refusal(403, text, logged=path.startswith(CONTROL))  # devices ask for "/" to compare their clocks

    async def _node(self, scope: Scope, headers: Headers, known: str) -> tuple[str, Refusal | None]:
        key = self._authority.claimed_key(headers)
        proved = key is not None and (known == key.hex() or await run_in_threadpool(self._authority.is_signed, headers))
        if key is None or not proved:
            return "", Refusal(401, "Invalid SuperNode authentication")  # in Flower's words, which its nodes log
        now = time.monotonic()
        if now - self._looked_up.get(key, float("-inf")) > RECHECK_SECONDS:
            if not await run_in_threadpool(self._authority.is_registered, scope, key):
                self._looked_up.pop(key, None)
                return "", None
            self._looked_up[key] = now
        return key.hex(), None

    def _too_large(self, scope: Scope, headers: Headers, count: int) -> Refusal | None:
        if "transfer-encoding" in headers:
            return Refusal(411, "a request does not say how long it is")
        if count <= self._most or not scope["path"].startswith(FLEET):
            return None
        text = f"a request is {count:,} bytes long, and at most {self._most:,} are taken"
        return Refusal(413, f"{text}; see `message_mib` in the server's settings")

    async def _refuse(self, refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and have the connection closed: what is still coming is not read."""
        address = _address(scope)
        known = (address, refusal.status)
        if refusal.logged and known not in self._logged and len(self._logged) < MOST_LOGGED:
            self._logged.add(known)
            print(f"{SAYS}{address} is refused at {scope['path'][:80]!r}: {refusal.text}", flush=True)
        response = PlainTextResponse(f"{SAYS}{refusal.text}\n", refusal.status, {"connection": "close"})
        await response(scope, receive, send)
        if connection := scope.get(SCOPE_KEY):
            connection.leave()

    def _is_operators(self, scope: Scope) -> bool:
        """Return whether a request comes from a machine of operators. A proxy hides that: hence the token."""
        client, server = scope.get("client"), scope.get("server")
        if client is None:
            return False
        if server is not None and client[0] == server[0]:
            return True  # a connection of this machine with itself
        address = ipaddress.ip_address(client[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self._networks)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else "?"


def _again(pieces: deque[bytes], receive: Receive) -> Receive:
    """Return a function that hands the pieces of a body over, and then what comes after them."""

    async def hand_over() -> Message:
        if not pieces:
            return await receive()
        piece = pieces.popleft()
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    return hand_over


async def _body(
    peer: str, count: int, receive: Receive, room: Room | None, stack: AsyncExitStack
) -> deque[bytes] | Refusal | None:
    """Read a body into pieces, which take room until the stack ends; None: the peer has left."""
    pieces, arrived, began = deque[bytes](), 0, time.monotonic()
    while True:
        try:
            message = await asyncio.wait_for(receive(), STALL_SECONDS)
        except TimeoutError:
            return Refusal(408, f"a request stopped after {arrived:,} of {count:,} bytes")
        if message["type"] != "http.request":
            return None
        piece: bytes = message.get("body", b"")
        if room is not None and piece:
            if not await room.take(peer, len(piece)):
                return Refusal(503, "there is no room in memory for a request")
            stack.push_async_callback(room.give_back, peer, len(piece))
        pieces.append(piece)
        arrived += len(piece)
        if not message.get("more_body", False):
            return pieces
        if arrived < LEAST_RATE * (time.monotonic() - began - STALL_SECONDS):
            return Refusal(408, f"a request is slower than {LEAST_RATE:,.0f} bytes a second")
