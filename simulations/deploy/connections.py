"""Connections of the SuperLink: bounded in number, in time and in the size of headers, also before TLS has begun.

uvicorn has no limit for any of these. A connection is a *stranger's* until its peer has proved who it is
(`admission`); strangers' connections are few, for each address and in all, and short. Behind a proxy or a router all
peers have one address; once they are proven they are counted by their keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, cast

import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HANDSHAKE_SECONDS: Final = 20.0
"""Time limit for the TLS handshake."""
HEADER_SECONDS: Final = 20.0
"""Time limit for a request's headers, from the first byte of the request, or from the handshake."""
MOST_HEADER_BYTES: Final = 1 << 15
"""Largest size of a request's headers; a node's take about 800 bytes."""
STRANGERS: Final = 256
"""Most connections of peers that have not proved who they are. Each takes about 0.4 MB, most of it for TLS."""
STRANGERS_EACH: Final = 64
"""Most of them from one address."""
PROVEN_EACH: Final = 32
"""Most connections of one node or operator; Flower's nodes have up to five."""
LINGER_SECONDS: Final = 5.0
"""Time after a refusal in which the peer can read it."""
PAUSE_SECONDS: Final = 0.2
"""Pause of a listener when the system has no more files to open."""
SCOPE_KEY: Final = "fedpress.connection"
"""Key of a request's ASGI scope with its `Connection`."""


class Connections:
    """All open connections.

    Args:
        strangers: Most connections of strangers.
        each: Most of them from one address.
        proven: Most connections of one peer that has proved who it is.
    """

    def __init__(self, strangers: int = STRANGERS, each: int = STRANGERS_EACH, proven: int = PROVEN_EACH) -> None:
        self._most, self._each, self._proven = strangers, each, proven
        self._handshakes = Counter[str]()
        self._strangers: dict[Connection, str] = {}  # to the address, in the order of arrival
        self._peers: dict[str, list[Connection]] = {}  # of those that are proven, in the order of their proof

    def may_begin(self, address: str) -> bool:
        """Return whether a new connection may begin its handshake, and count it until `began`."""
        if self._handshakes[address] >= self._each or self._handshakes.total() >= self._most:
            return False
        self._handshakes[address] += 1
        return True

    def began(self, address: str) -> None:
        """Forget a handshake, which has succeeded or failed."""
        self._handshakes -= Counter([address])

    def add(self, connection: Connection, address: str) -> None:
        """Count a stranger's connection; where there are too many, the oldest of them is closed."""
        same = [other for other, place in self._strangers.items() if place == address]
        if len(same) >= self._each:
            same[0].drop()
        elif len(self._strangers) >= self._most:
            next(iter(self._strangers)).drop()
        self._strangers[connection] = address

    def prove(self, connection: Connection, peer: str) -> None:
        """Count a connection as one of a peer's; where it has too many, its oldest is closed.

        Args:
            connection: A connection; nothing happens if it is closed, or is this peer's already.
            peer: Identity that was proved, such as the fingerprint of a key.
        """
        if self._strangers.pop(connection, None) is None:
            return
        connection.peer = peer
        known = self._peers.setdefault(peer, [])
        if len(known) >= self._proven:
            known[0].drop()
        known.append(connection)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._strangers.pop(connection, None)
        known = self._peers.get(connection.peer, [])
        if connection in known:
            known.remove(connection)
            if not known:
                del self._peers[connection.peer]

    def __len__(self) -> int:
        return len(self._strangers) + sum(map(len, self._peers.values()))


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with limits on the size and the time of headers.

    Attributes:
        peer: Who has proved to be at the other end; empty: nobody.
    """

    counted: Connections  # of the listener, set by `protocol`

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.peer = ""
        self._deadline: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._reading = False  # a request's headers or body

    def prove(self, peer: str) -> None:
        """Record who is at the other end."""
        self.counted.prove(self, peer)

    def leave(self) -> None:
        """Close the connection soon: what its peer still sends is thrown away for a moment, so that it can read."""
        self.counted.remove(self)
        self.transport.close()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def drop(self) -> None:
        """Close the connection at once."""
        self.counted.remove(self)
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and wait for a request."""
        super().connection_made(transport)
        self.counted.add(self, self.client[0] if self.client else "")
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._arrived()
        self.counted.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read bytes; headers that grow beyond the limit end the connection."""
        if self.transport.is_closing():
            return  # of a peer that goes on sending after a refusal
        if not self._reading and self._deadline is None:
            self._wait()  # line breaks before a request begin no message
        super().data_received(data)
        if self._deadline is not None and not self.transport.is_closing():
            self._header_bytes += len(data)
            if self._header_bytes > MOST_HEADER_BYTES:
                self._refuse(431, "Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """Begin to read headers."""
        super().on_message_begin()
        self._reading = True
        cast(dict[str, Any], self.scope)[SCOPE_KEY] = self
        if self._deadline is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """Stop the clock: the body has another, in `admission`."""
        self._arrived()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        self._reading = False
        super().on_message_complete()

    def _wait(self) -> None:
        self._header_bytes = 0
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._refuse, 408, "Request Timeout")

    def _arrived(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: int, reason: str) -> None:
        self._arrived()
        if not self.transport.is_closing():
            self.transport.write(
                f"HTTP/1.1 {status} {reason}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
            )
            self.leave()


def protocol(connections: Connections) -> type[Connection]:
    """Return the class of connections that are counted in `connections`."""
    return type("Connection", (Connection,), {"counted": connections})


class Listener:
    """Server of `create_server`'s kind that counts connections from their first moment.

    Args:
        loop: The event loop.
        sockets: Listening sockets.
        make: Makes the protocol of a connection.
        context: TLS; None: none.
        connections: Counts the connections.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: list[socket.socket],
        make: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
        connections: Connections,
    ) -> None:
        self.sockets = tuple(sockets)
        self._loop, self._make, self._context, self._connections = loop, make, context, connections
        self._tasks: set[asyncio.Task[None]] = set()
        for listening in sockets:
            loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                accepted, (address, *_) = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no more files may be open: those that wait are served later
                self._loop.remove_reader(listening)
                self._loop.call_later(PAUSE_SECONDS, self._resume, listening)
                return
            if not self._connections.may_begin(address):
                accepted.close()
                continue
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._begin(accepted, address))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _resume(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            self._loop.add_reader(listening, self._accept, listening)

    async def _begin(self, accepted: socket.socket, address: str) -> None:
        try:
            if self._context is None:
                await self._loop.connect_accepted_socket(self._make, accepted)
            else:
                await self._loop.connect_accepted_socket(
                    self._make, accepted, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS
                )
        except OSError:  # it left, was too slow, or speaks no TLS
            accepted.close()
        finally:
            self._connections.began(address)

    def close(self) -> None:
        """Accept no more connections."""
        for listening in self.sockets:
            if listening.fileno() >= 0:
                self._loop.remove_reader(listening)
                listening.close()
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait for handshakes to end."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)


def loop_factory(connections: Connections) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return a function that makes an event loop whose servers are `Listener`s."""

    def make_loop() -> asyncio.AbstractEventLoop:
        loop = uvloop.new_event_loop()

        async def create_server(
            make: Callable[[], asyncio.Protocol],
            host: str | None = None,
            port: int | None = None,
            *,
            ssl: ssl.SSLContext | None = None,
            backlog: int = 100,
        ) -> Listener:
            found = await loop.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            sockets = []
            try:
                for family, _, _, _, address in dict.fromkeys(found):
                    sockets.append(listening := socket.socket(family, socket.SOCK_STREAM))
                    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    listening.bind(address)
                    listening.listen(backlog)
                    listening.setblocking(False)
            except OSError:
                for listening in sockets:
                    listening.close()
                raise
            return Listener(loop, sockets, make, ssl, connections)

        cast(Any, loop).create_server = create_server
        return loop

    return make_loop
