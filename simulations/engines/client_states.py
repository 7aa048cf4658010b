"""States that simulated clients keep between messages (Flower's `Context.state`): a file for each, in one folder.

A file holds the records without the bytes of their arrays, as Flower serializes them, and then these bytes, each after
their length. So no array is copied, which took ten times as long as writing it. The arrays that fedpress keeps are read
from the file once they are asked for, so that those of a large model are not in memory twice.
"""

import fcntl
import math
import os
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from logging import ERROR, getLogger
from multiprocessing import connection
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, BinaryIO

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from fedpress.client.state import stores
from fedpress.compression import files
from fedpress.compression.messages import records
from fedpress.compression.tensors import array_file
from fedpress.simulations.engines.client_grid import EngineError

TEMPORARY = "fedpress-"
"""Prefix of the name of a folder that does not outlive an engine."""
LOCK_SECONDS = 10.0
"""Longest wait for the workers of a killed run, which end by themselves, at once."""


def path_of(folder: Path, client: int) -> Path:
    """Return the path of a client's state.

    Args:
        folder: Folder of all states.
        client: Index of the client, from 0.
    """
    return folder / f"state-{client}"


def read(folder: Path, client: int) -> RecordDict:
    """Return a client's state, empty if it has none; a damaged file is moved aside, and logged.

    Args:
        folder: Folder of all states.
        client: Index of the client, from 0.
    """
    path = path_of(folder, client)
    try:
        return _parsed(path)
    except FileNotFoundError:
        pass
    except Exception as error:  # of `_parsed`, of protobuf, or of records that do not fit their arrays
        aside = files.move_aside(path)
        getLogger("flwr").log(ERROR, "the state of client %d is damaged (%s), and is now %s", client, error, aside)
    return RecordDict()


def write(folder: Path, client: int, state: RecordDict, *, durable: bool) -> None:
    """Replace a client's state as a whole; an empty one is not written.

    Args:
        folder: Folder of all states.
        client: Index of the client, from 0.
        state: Records to keep.
        durable: Whether the file is on the disk when this returns (fsync).
    """
    if not state:
        return
    path = path_of(folder, client)
    if durable:
        files.write_atomically(path, _pieces(state))
        return
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    with temporary.open("wb") as file:
        file.writelines(_pieces(state))
    temporary.replace(path)


def _pieces(state: RecordDict) -> Iterator[bytes | memoryview]:
    light = RecordDict(
        {
            **state,
            **{
                key: _mapped(record, lambda array: Array(array.dtype, array.shape, array.stype, b""))
                for key, record in state.array_records.items()
            },
        }
    )
    text = records.content_to_bytes(light)
    yield len(text).to_bytes(8, "little")
    yield text
    for record in state.array_records.values():
        for array in record.values():
            data = _data(array)
            yield len(data).to_bytes(8, "little")
            yield data


def _data(array: Array) -> bytes | memoryview:
    """Return the bytes of an array, of one of fedpress's own without a copy of what is in memory."""
    if isinstance(array, records.DerivedArray) and array.stype == stores.STYPE:
        return array_file.view(array.view())
    return array.data


def _parsed(path: Path) -> RecordDict:
    """Return the state in a file, from which arrays of fedpress's own are read later: until it is written anew."""
    with path.open("rb") as file:
        return _parsed_file(file, path)


def _parsed_file(file: BinaryIO, path: Path) -> RecordDict:
    end = file.seek(0, os.SEEK_END)
    file.seek(0)

    def length() -> int:
        field = file.read(8)
        size = int.from_bytes(field, "little")
        if len(field) < 8 or file.tell() + size > end:
            raise ValueError("it ends early")
        return size

    def array(light: Array) -> Array:
        size, start = length(), file.tell()
        if light.stype != stores.STYPE:
            return Array(light.dtype, light.shape, light.stype, file.read(size))
        dtype, shape = np.dtype(light.dtype), tuple(light.shape)
        if math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"an array of shape {shape} has {size} bytes")
        file.seek(size, os.SEEK_CUR)

        def make() -> NDArray[Any]:
            return np.fromfile(path, dtype, math.prod(shape), offset=start).reshape(shape)

        return records.DerivedArray(light.dtype, shape, make, light.stype)

    state = records.content_from_bytes(file.read(length()))
    for key, record in state.array_records.items():
        state[key] = _mapped(record, array)
    if file.tell() != end:
        raise ValueError("it goes on after its end")
    return state


def _mapped(record: ArrayRecord, change: Callable[[Array], Array]) -> ArrayRecord:
    return records.of_arrays((name, change(array)) for name, array in record.items())


def digest(folder: Path, clients: int) -> str:
    """Return the SHA-256 over all clients' states.

    Args:
        folder: Folder of all states.
        clients: Number of clients.
    """
    digest = sha256()
    for client in range(clients):
        path = path_of(folder, client)
        digest.update(str(client).encode())
        if not path.exists():
            digest.update(b"none")
            continue
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def locked(states: Path) -> connection.Connection:
    """Make the folder of the clients' states and lock it against other engines and the workers of killed ones.

    The lock belongs to the open file description, which workers inherit: as a connection, since that is what
    `multiprocessing` passes to a process. It is free once this process and all its workers have ended.

    Raises:
        EngineError: Another run holds the lock.
    """
    states.mkdir(parents=True, exist_ok=True)
    lock = connection.Connection(os.open(states / "lock", os.O_RDWR | os.O_CREAT, 0o644))
    deadline = perf_counter() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if perf_counter() > deadline:
                lock.close()
                raise EngineError(f"another run is at work in {states}; wait for its end, or stop it") from None
            sleep(0.05)
        else:
            files.remove_leftovers(states)
            for folder in states.glob(f"{TEMPORARY}*"):
                shutil.rmtree(folder)
            return lock
