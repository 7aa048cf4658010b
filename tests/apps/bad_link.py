"""A TCP forwarder that misbehaves: it delays, throttles, cuts, resets and drops connections, by a seed.

It stands before a server on this machine and passes bytes on unchanged, TLS or not. What it does may be changed while
connections are open; `counts` says what it did.
"""

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

CHUNK = 1 << 14


@dataclass(frozen=True)
class Weather:
    """How bad the link is.

    Attributes:
        delay: seconds that every chunk of bytes waits, each way.
        bytes_per_second: of each connection and way; 0: as fast as it goes.
        refuse: chance that a new connection is reset at once.
        cut_after: a connection is closed after about so many bytes, drawn anew for each; 0: never.
        reset: whether what is cut is reset (RST), rather than closed.
    """

    delay: float = 0.0
    bytes_per_second: float = 0.0
    refuse: float = 0.0
    cut_after: int = 0
    reset: bool = False


class BadLink:
    """Forwards connections to a port of 127.0.0.1; use it as a context manager.

    Args:
        target: the port to forward to.
        seed: of what is refused and cut.

    Attributes:
        port: where it listens.
        weather: may be set at any time.
        counts: connections, those refused and cut, bytes up and down.
    """

    def __init__(self, target: int, seed: int = 0) -> None:
        self.port = 0
        self.weather = Weather()
        self.counts: Counter[str] = Counter()
        self._target = target
        self._random = random.Random(seed)
        self._ready = threading.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> "BadLink":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def cut_all(self) -> None:
        """Reset every open connection now."""
        self._loop.call_soon_threadsafe(lambda: [self._end(writer, True) for writer in list(self._open)])

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for writer in list(self._open):
            self._end(writer, True)

    async def _forward(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.counts["connections"] += 1
        weather = self.weather
        if self._random.random() < weather.refuse:
            self.counts["refused"] += 1
            self._end(to_client, True)
            return
        left = [self._random.uniform(0.1, 2.0) * weather.cut_after if weather.cut_after else float("inf")]
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            self._end(to_client, True)
            return
        both = {to_client, to_server}
        self._open |= both

        async def passed(name: str, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            while data := await source.read(CHUNK):
                if self.weather.delay:
                    await asyncio.sleep(self.weather.delay)
                left[0] -= len(data)
                if left[0] < 0:
                    self.counts["cut"] += 1
                    raise ConnectionAbortedError
                to.write(data)
                await to.drain()
                self.counts[name] += len(data)
                if self.weather.bytes_per_second:
                    await asyncio.sleep(len(data) / self.weather.bytes_per_second)
            with suppress(OSError):
                to.write_eof()

        ways = [
            asyncio.ensure_future(passed("up", client, to_server)),
            asyncio.ensure_future(passed("down", server, to_client)),
        ]
        hard = False
        try:
            await asyncio.gather(*ways)
        except (OSError, asyncio.CancelledError):
            hard = self.weather.reset
        finally:
            for way in ways:
                way.cancel()
            self._open -= both
            for writer in both:
                self._end(writer, hard)

    def _end(self, writer: asyncio.StreamWriter, hard: bool) -> None:
        with suppress(OSError):
            if hard and (raw := writer.get_extra_info("socket")) is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()
