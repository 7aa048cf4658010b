"""TCP forwarder that counts the bytes of HTTP requests and of their responses.

It forwards between a client and a server without changes. Counted are the TCP streams: with HTTP's request lines and
headers, without the headers of TCP and IP. Requests within TLS cannot be distinguished; so a counter can terminate TLS,
while another one before it counts the same bytes with TLS.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

CHUNK = 1 << 16


@dataclass
class Request:
    """One request and its response.

    Attributes:
        began: Monotonic time of its first bytes, in seconds.
        path: Path of the URL, such as `/v1/fleet/pull-messages`.
        up: Bytes of the request.
        down: Bytes of the response.
    """

    began: float
    path: str
    up: int = 0
    down: int = 0


class ByteCounter:
    """Forwarder to a port of 127.0.0.1 that counts bytes; use it as a context manager.

    Law: the requests' bytes, up and down, sum to the bytes of the connections.

    A request begins with the client's first bytes after a response, or of the connection: over HTTP/1.1 Flower's client
    sends one request at a time.

    Args:
        target: Port to forward to.
        tls: Server context that terminates TLS; None: bytes are forwarded as they are.

    Attributes:
        port: Port on which it listens.
        connections: Number of connections so far.
    """

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        self._target = target
        self._tls = tls
        self.connections = 0
        self._requests: list[Request] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.port = 0

    def __enter__(self) -> ByteCounter:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def requests(self) -> list[Request]:
        """Return the requests so far, in the order in which they began."""
        return list(self._requests)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _forward(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # no server: the client's connection is closed, too
            to_client.close()
            return
        requests: list[Request] = []  # of this connection

        async def up() -> None:
            while data := await client.read(CHUNK):
                if not requests or requests[-1].down:
                    requests.append(Request(time.monotonic(), _path(data)))
                    self._requests.append(requests[-1])
                requests[-1].up += len(data)
                to_server.write(data)
                await to_server.drain()
            to_server.write_eof()

        async def down() -> None:
            while data := await server.read(CHUNK):
                requests[-1].down += len(data)
                to_client.write(data)
                await to_client.drain()
            if self._tls:  # TLS has no half-closed connections
                to_client.close()
            else:
                to_client.write_eof()

        # Where one side is gone, or the counter is closed, the bytes so far are counted.
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(up(), down())
        to_client.close()
        to_server.close()


def _path(request: bytes) -> str:
    """Return the path of an HTTP request's first line, or "?"."""
    words = request.split(b"\r\n", 1)[0].split(b" ")
    return words[1].decode("latin-1") if len(words) == 3 else "?"
