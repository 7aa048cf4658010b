"""What each simulated client keeps between messages (Flower's `Context.state`): a file each, in one folder."""

import os
from hashlib import sha256
from logging import ERROR, getLogger
from pathlib import Path

from flwr.app import RecordDict
from flwr.common import serde
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from fedpress.compression import files


def path_of(folder: Path, client: int) -> Path:
    """Return the file of a client's state."""
    return folder / f"state-{client}"


def read(folder: Path, client: int) -> RecordDict:
    """Return a client's state, empty where it has none; a damaged file is moved aside, and the log says so."""
    path = path_of(folder, client)
    try:
        return serde.recorddict_from_proto(ProtoRecordDict.FromString(path.read_bytes()))
    except FileNotFoundError:
        pass
    except Exception as error:  # protobuf's, or one from records that make no sense
        aside = files.move_aside(path)
        getLogger("flwr").log(ERROR, "the state of client %d is damaged (%s), and is now %s", client, error, aside)
    return RecordDict()


def write(folder: Path, client: int, state: RecordDict, *, durable: bool) -> None:
    """Replace a client's state as a whole; an empty one is not kept.

    Args:
        folder: of all states.
        client: the client's index.
        state: what it keeps.
        durable: whether it is on the disk when this returns.
    """
    if not state:
        return
    path, data = path_of(folder, client), serde.recorddict_to_proto(state).SerializeToString()
    if durable:
        files.write_atomically(path, data)
        return
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def digest(folder: Path, clients: int) -> str:
    """Return the SHA-256 over the state that every client keeps."""
    found = sha256()
    for client in range(clients):
        path = path_of(folder, client)
        found.update(str(client).encode())
        found.update(path.read_bytes() if path.exists() else b"none")
    return found.hexdigest()
