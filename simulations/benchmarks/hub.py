"""`fedpress bench hub`: concurrent downloads from a hub on this machine, over TLS, with its time and memory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc

from fedpress.client.download.pull import HubConnection
from fedpress.compression import install
from fedpress.compression.errors import FedpressError
from fedpress.compression.messages import hub_pb2, hub_pb2_grpc
from fedpress.server.hub import admission
from fedpress.server.publishing.store import ModelStore
from fedpress.simulations.deploy import keys

FEW: Final = 10
START_SECONDS: Final = 60.0
READ_BYTES: Final = 1 << 16


class HubBenchError(FedpressError):
    """The hub does not start, or its memory cannot be read."""


class Load(NamedTuple):
    """Figures of a number of concurrent downloads.

    Attributes:
        downloads: Their number; all are open before any continues.
        errors: Downloads that failed, or whose bytes do not match their hash.
        seconds: Time from the first request to the last byte.
        megabytes_per_second: Rate of all together; clients and hub share this machine.
        cpu_seconds: Processor time of the hub.
        idle_bytes, peak_bytes: Resident memory of the hub before the downloads, and its peak.
    """

    downloads: int
    errors: int
    seconds: float
    megabytes_per_second: float
    cpu_seconds: float
    idle_bytes: int
    peak_bytes: int


class HubFigures(NamedTuple):
    """Figures of the benchmark.

    Attributes:
        size: Bytes of the file.
        loads: Figures with few downloads, and with many.
        read_megabytes_per_second: Rate of reading the file from disk as often as it was downloaded.
    """

    size: int
    loads: list[Load]
    read_megabytes_per_second: float


def run(downloads: int, size: int, say: Callable[[str], None]) -> HubFigures:
    """Measure few downloads, then many.

    Args:
        downloads: Number of concurrent downloads.
        size: Bytes of the file.
        say: Called with each step's name.

    Raises:
        HubBenchError: The hub does not start, or this is not Linux.
    """
    if not Path("/proc/self/status").exists():
        raise HubBenchError("memory is read from /proc: this needs Linux")
    with tempfile.TemporaryDirectory(prefix="fedpress-hub-") as name:
        folder = Path(name)
        keys.init(folder / "keys", ["127.0.0.1"], days=1)
        token = admission.add_token(folder / "tokens", "bench")
        path = ModelStore(folder / "store").put(os.urandom(size), tier="bench", version=1)
        loads = []
        for count in (min(FEW, downloads), downloads):
            say(f"{count} downloads of {size / 1e6:.1f} MB at once")
            loads.append(_load(folder, token, count))
        say("the same bytes from the disk")
        return HubFigures(size, loads, _read(path, downloads))


def _load(folder: Path, token: str, count: int) -> Load:
    paths = keys.Folder(folder / "keys")
    command = [
        sys.executable, "-m", "fedpress.simulations", "hub", str(folder / "store"), "--listen", "127.0.0.1:0",
        "--certificate", str(paths.server), "--key", str(paths.server_key),
        "--tokens", str(folder / "tokens"),
        *("--downloads", str(count), "--downloads-each", str(count), "--requests", str(60 * count)),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        address = _address(process)
        idle, busy = _resident(process.pid, "VmRSS"), _cpu(process.pid)
        errors, taken, seconds = asyncio.run(_download_all(HubConnection(address, paths.ca, token), count))
        return Load(
            count, errors, seconds, taken / 1e6 / seconds, _cpu(process.pid) - busy,
            idle, _resident(process.pid, "VmHWM"),
        )  # fmt: skip
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def _address(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout
    if select.select([process.stdout], [], [], START_SECONDS)[0]:
        match = re.search(rb"hub listens on (\S+)", process.stdout.readline())
        if match:
            return match[1].decode()
    raise HubBenchError(f"the hub does not start: is its extra installed, {install.command('hub')}?")


async def _download_all(hub: HubConnection, count: int) -> tuple[int, int, float]:
    """Return the number of errors, the bytes received, and the seconds."""
    began = time.monotonic()
    opened = 0
    all_open = asyncio.Event()

    async def one() -> int:
        nonlocal opened
        async with hub.channel() as channel:
            stub: Any = hub_pb2_grpc.HubStub(channel)  # type: ignore[no-untyped-call]
            call = stub.GetBundle(hub_pb2.GetRequest(tier="bench"), metadata=hub.metadata())
            try:
                about = (await call.read()).bundle
            finally:
                opened += 1
                if opened == count:
                    all_open.set()
            await all_open.wait()
            digest, taken = hashlib.sha256(), 0
            while (part := await call.read()) is not grpc.aio.EOF:
                digest.update(part.data)
                taken += len(part.data)
            if digest.digest() != about.sha256 or await call.code() != grpc.StatusCode.OK:
                raise HubBenchError("a file came with other bytes than announced")
            return taken

    ended = await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)
    taken = [one for one in ended if isinstance(one, int)]
    return count - len(taken), sum(taken), time.monotonic() - began


def _read(path: Path, times: int) -> float:
    """Return the rate of reading a file, in megabytes a second."""
    began, total = time.monotonic(), 0
    for _ in range(times):
        with path.open("rb", buffering=0) as file:
            while data := file.read(READ_BYTES):
                total += len(data)
    return total / 1e6 / (time.monotonic() - began)


def _resident(process: int, name: str) -> int:
    rows = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith(name))


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


COLUMNS = ("downloads at once", "errors", "seconds", "MB/s", "hub's CPU s", "hub idle", "hub's peak")


def rows(figures: HubFigures) -> list[tuple[str, ...]]:
    """Return a row for each load, under `COLUMNS`."""
    return [
        (
            str(load.downloads),
            str(load.errors),
            f"{load.seconds:.1f}",
            f"{load.megabytes_per_second:.0f}",
            f"{load.cpu_seconds:.1f}",
            f"{load.idle_bytes / 1e6:.1f} MB",
            f"{load.peak_bytes / 1e6:.1f} MB",
        )
        for load in figures.loads
    ]


def facts(figures: HubFigures) -> list[tuple[str, str]]:
    """Return name and value of the ratios, which can be compared between machines."""
    few, many = figures.loads
    return [
        ("peak memory, many against few", f"{many.peak_bytes / few.peak_bytes:.2f}x"),
        ("memory of one more download", f"{_each(figures) / 1e3:.0f} kB"),
        ("rate, many against few", f"{many.megabytes_per_second / few.megabytes_per_second:.2f}x"),
        (
            "rate against reading the file",
            f"{many.megabytes_per_second / figures.read_megabytes_per_second:.3f}x"
            f" ({figures.read_megabytes_per_second:,.0f} MB/s from the disk or its cache)",
        ),
    ]


def _each(figures: HubFigures) -> float:
    few, many = figures.loads
    return (many.peak_bytes - few.peak_bytes) / max(1, many.downloads - few.downloads)


def as_json(figures: HubFigures) -> dict[str, Any]:
    """Return all figures as plain data."""
    return {**figures._asdict(), "loads": [load._asdict() for load in figures.loads]}
