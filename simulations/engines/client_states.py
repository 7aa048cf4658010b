"""States that simulated clients keep between messages (Flower's `Context.state`): a file for each, in one folder.

A file holds the records without the bytes of their arrays, as Flower serializes them, and then these bytes, each after
their length. So no array is copied, which took ten times as long as writing it.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from logging import ERROR, getLogger
from multiprocessing import connection
from pathlib import Path
from time import perf_counter, sleep

from flwr.app import Array, ArrayRecord, RecordDict

from fedpress.compression import files
from fedpress.compression.messages import records
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
        with path.open("rb") as file:
            state = _parsed(file.read)
            if file.read(1):
                raise ValueError("it goes on after its end")
        return state
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


def _pieces(state: RecordDict) -> Iterator[bytes]:
    light = RecordDict(
        {**state, **{key: _with_data(record, lambda _: b"") for key, record in state.array_records.items()}}
    )
    for data in (
        records.content_to_bytes(light),
        *(array.data for record in state.array_records.values() for array in record.values()),
    ):
        yield len(data).to_bytes(8, "little")
        yield data


def _parsed(read: Callable[[int], bytes]) -> RecordDict:
    def piece() -> bytes:
        length = read(8)
        size = int.from_bytes(length, "little")
        data = read(size)
        if len(length) < 8 or len(data) < size:
            raise ValueError("it ends early")
        return data

    state = records.content_from_bytes(piece())
    for key, record in state.array_records.items():
        state[key] = _with_data(record, lambda _: piece())
    return state


def _with_data(record: ArrayRecord, data: Callable[[Array], bytes]) -> ArrayRecord:
    return ArrayRecord(
        {name: Array(array.dtype, array.shape, array.stype, data(array)) for name, array in record.items()}
    )


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
        digest.update(path.read_bytes() if path.exists() else b"none")
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
