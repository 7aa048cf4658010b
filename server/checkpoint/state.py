"""State of a run as a typed value, and its form in a checksummed file.

Each part of the server declares its state as a named tuple or a dataclass, and the state of a run is a tree of them.
`pack` turns such a tree into arrays and JSON, and `Saved.part` reads it back by the annotations of the types.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import types
from collections import deque
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, BinaryIO, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints, runtime_checkable

import numpy as np
import torch
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from fedpress.compression.errors import FedpressError
from fedpress.compression.messages import records
from fedpress.compression.tensors import array_file

FORMAT = "fedpress.checkpoint"
VERSION = 2
_BYTES = "bytes"
"""Name of the array with all distinct bytes values, one after the other."""
_TEXT = "json"
"""Name of the array with the other values as JSON. In the file's header they could have 100 MB and no more: safetensors
writes a longer header, and does not read it."""

S = TypeVar("S")


class CheckpointError(FedpressError, ValueError):
    """A checkpoint cannot be written or used."""


class DamagedCheckpoint(CheckpointError):
    """The bytes are not those of a whole checkpoint."""


@runtime_checkable
class Resumable(Protocol):
    """A part of a run that goes into its checkpoints.

    Law: after `restore(state)`, on a fresh object, both go on in the same way, bit for bit.
    """

    def state(self) -> Any:
        """Return the state, of the annotated type; it may share memory with the object, and is written at once."""

    def restore(self, state: Any) -> None:
        """Take up a state."""


class _Writer:
    """A tree on its way to arrays and JSON."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self.bytes: dict[bytes, int] = {}  # value -> its number

    def plain(self, value: Any, path: str) -> Any:
        """Return a value as JSON holds it; arrays and bytes are collected apart."""
        if isinstance(value, torch.Tensor):
            value = value.numpy()
        if isinstance(value, np.ndarray | np.generic):  # numpy's arithmetic turns arrays of shape () into scalars
            self.arrays[path] = np.ascontiguousarray(value).reshape(value.shape)
            return path
        if isinstance(value, Message):
            value = records.message_to_bytes(value)
        elif isinstance(value, RecordDict):
            value = records.content_to_bytes(value)
        if isinstance(value, bytes):
            return self.bytes.setdefault(value, len(self.bytes))
        if names := _fields(type(value)):
            return {name: self.plain(getattr(value, name), f"{path}/{name}") for name in names}
        if isinstance(value, Mapping):  # as pairs: JSON would turn the numbers among its keys into texts
            return [[key, self.plain(entry, f"{path}/{key}")] for key, entry in value.items()]
        if isinstance(value, list | tuple | deque):
            return [self.plain(entry, f"{path}/{number}") for number, entry in enumerate(value)]
        return value


class Saved:
    """State read from a file, whose parts are still untyped.

    Args:
        arrays: arrays by path.
        values: other values by part.
        lengths: lengths of the bytes values, which stand one after the other in an array of their own.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any], lengths: list[int]) -> None:
        self._arrays = arrays
        self._values = values
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        whole = arrays[_BYTES].tobytes()
        self._bytes = [whole[end - length : end] for end, length in zip(ends, lengths, strict=True)]

    def part(self, name: str, kind: type[S]) -> S:
        """Return a part of the state.

        Args:
            name: name under which it was packed.
            kind: its type.

        Raises:
            CheckpointError: there is no such part, or it is of another type.
        """
        try:
            part: S = self._typed(self._values[name], kind)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CheckpointError(
                f"the checkpoint is of another run: its part {name!r} is no {kind.__name__}"
                f" ({type(error).__name__}: {error})"
            ) from error
        return part

    def _typed(self, value: Any, kind: Any) -> Any:
        origin, arguments = get_origin(kind) or kind, get_args(kind)
        if origin in (Union, types.UnionType):
            if value is None:
                return None
            (kind,) = (argument for argument in arguments if argument is not types.NoneType)
            return self._typed(value, kind)
        if origin is np.ndarray:
            return self._arrays[value]
        if origin is torch.Tensor:
            return torch.from_numpy(self._arrays[value])
        if origin is bytes:
            return self._bytes[value]
        if origin is Message:
            return records.message_from_bytes(self._bytes[value])
        if origin is RecordDict:
            return records.content_from_bytes(self._bytes[value])
        if names := _fields(origin):
            hints = _hints(origin)
            return origin(**{name: self._typed(value[name], hints[name]) for name in names})
        if origin is dict and arguments:
            return {key: self._typed(entry, arguments[1]) for key, entry in value}
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            return tuple(self._typed(entry, argument) for entry, argument in zip(value, arguments, strict=True))
        if origin in (list, tuple, deque) and arguments:
            return origin(self._typed(entry, arguments[0]) for entry in value)
        return value


def pack(state: Mapping[str, Any]) -> bytes:
    """Return a state, part by part, as the bytes of a safetensors file."""
    return b"".join(pieces(state))


def pieces(state: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of `pack` piece by piece; no array is copied."""
    writer = _Writer()
    values = {name: writer.plain(part, name) for name, part in state.items()}
    text = json.dumps({"values": values, "lengths": [len(value) for value in writer.bytes]}).encode()
    arrays = {
        **writer.arrays,
        _BYTES: np.frombuffer(b"".join(writer.bytes), np.uint8),
        _TEXT: np.frombuffer(text, np.uint8),
    }
    header = {"format": FORMAT, "version": str(VERSION), "checksum": _checksum(arrays)}
    yield from array_file.pieces(arrays, header)


def unpack(data: bytes | BinaryIO) -> Saved:
    """Read a state that `pack` has written.

    Args:
        data: The bytes, or a file with them.

    Raises:
        Damaged: the bytes are torn, changed, or no checkpoint.
        CheckpointError: a newer or an older version of fedpress wrote them.
    """
    try:
        arrays, header = array_file.read(io.BytesIO(data) if isinstance(data, bytes) else data)
        form, checksum, version = header["format"], header["checksum"], int(header["version"])
    except (KeyError, ValueError) as error:
        raise DamagedCheckpoint(
            f"it is torn, or no checkpoint of fedpress ({type(error).__name__}: {error})"
        ) from error
    if form != FORMAT:
        raise DamagedCheckpoint(f"it is no checkpoint of fedpress, but {form!r}")
    if version != VERSION:
        way = (
            "update fedpress" if version > VERSION else "finish that run with the fedpress that began it, or begin anew"
        )
        raise CheckpointError(f"it has format version {version}, this fedpress reads {VERSION}; {way}")
    if checksum != _checksum(arrays) or _TEXT not in arrays:
        raise DamagedCheckpoint("its checksum does not fit its content")
    content = json.loads(arrays[_TEXT].tobytes())
    return Saved(arrays, content["values"], content["lengths"])


def restore(part: Resumable, saved: Saved, name: str) -> None:
    """Restore a part of a run from a checkpoint.

    Args:
        part: the part; its method `state` is annotated with the type that it returns.
        saved: state of the checkpoint.
        name: name of the part in it.

    Raises:
        CheckpointError: there is no such part, or it is of another run.
    """
    part.restore(saved.part(name, _hints(type(part).state)["return"]))


def _fields(kind: Any) -> tuple[str, ...]:
    """Return the names of the fields of a named tuple or dataclass; of any other type none."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    names: tuple[str, ...] = getattr(kind, "_fields", ())
    return names


@functools.cache
def _hints(described: Any) -> dict[str, Any]:
    return get_type_hints(described)


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = sha256()
    array_file.checksum(arrays, digest.update)
    return digest.hexdigest()
