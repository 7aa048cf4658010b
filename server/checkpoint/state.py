"""State of a part of a run: arrays and JSON, packed into one checksummed file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.errors import FedpressError

FORMAT = "fedpress.checkpoint"
VERSION = 2  # 1: before buffered rounds


class CheckpointError(FedpressError, ValueError):
    """A checkpoint cannot be written or used."""


class State(NamedTuple):
    """What a part of the server keeps: arrays, and the rest as JSON has it.

    >>> State.of(model=State({"master": np.zeros(2)}, {"version": 3})).part("model").meta
    {'version': 3}
    """

    arrays: dict[str, NDArray[Any]]
    meta: dict[str, Any]

    @classmethod
    def of(cls, **parts: State) -> State:
        """Return the state of a whole, each part under its name."""
        arrays = {f"{name}/{key}": array for name, part in parts.items() for key, array in part.arrays.items()}
        return cls(arrays, {name: part.meta for name, part in parts.items()})

    def part(self, name: str) -> State:
        """Return the state of one part."""
        arrays = {
            key.removeprefix(f"{name}/"): array for key, array in self.arrays.items() if key.startswith(f"{name}/")
        }
        return State(arrays, self.meta[name])


@runtime_checkable
class Resumable(Protocol):
    """A part of a run that goes into its checkpoints.

    Law: after `restore(saved())`, on a fresh object, both go on in the same way, bit for bit.
    """

    def saved(self) -> State:
        """Return the state; it may share memory with the object, and is written at once."""

    def restore(self, state: State) -> None:
        """Take up a state."""


class Damaged(CheckpointError):
    """The bytes are not those of a whole checkpoint."""


def pack(state: State) -> bytes:
    """Return a state as the bytes of a safetensors file."""
    import safetensors.numpy

    arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in state.arrays.items()}
    text = json.dumps(state.meta)
    header = {"format": FORMAT, "version": str(VERSION), "state": text, "checksum": _checksum(arrays, text)}
    return bytes(safetensors.numpy.save(arrays, metadata=header))


def unpack(data: bytes) -> State:
    """Read what `pack` wrote.

    Raises:
        Damaged: the bytes are torn, changed, or no checkpoint.
        CheckpointError: a newer or an older fedpress wrote them.
    """
    import safetensors.numpy
    from safetensors import SafetensorError

    try:
        arrays = {name: array.copy() for name, array in safetensors.numpy.load(data).items()}
        header: Mapping[str, str] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        found, text, checksum = header["format"], header["state"], header["checksum"]
        version = int(header["version"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise Damaged(f"it is torn, or no checkpoint of fedpress ({type(error).__name__}: {error})") from error
    if found != FORMAT:
        raise Damaged(f"it is no checkpoint of fedpress, but {found!r}")
    if version != VERSION:
        way = (
            "update fedpress" if version > VERSION else "finish that run with the fedpress that began it, or begin anew"
        )
        raise CheckpointError(f"it has format version {version}, this fedpress reads {VERSION}; {way}")
    if checksum != _checksum(arrays, text):
        raise Damaged("its checksum does not fit its content")
    return State(arrays, json.loads(text))


def as_array(data: bytes) -> NDArray[np.uint8]:
    """Return bytes as an array."""
    return np.frombuffer(data, np.uint8)


def pairs(entries: Mapping[int, Any]) -> list[tuple[int, Any]]:
    """Return a mapping as JSON can hold it, whose keys would become texts; in order."""
    return sorted(entries.items())


def _checksum(arrays: Mapping[str, NDArray[Any]], text: str) -> str:
    digest = sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
