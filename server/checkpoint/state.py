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
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints, runtime_checkable

import numpy as np
import torch
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from fedpress.compression import files
from fedpress.compression.errors import FedpressError
from fedpress.compression.messages import records
from fedpress.compression.tensors import array_file

FORMAT = "fedpress.checkpoint"
VERSION = 3
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


@runtime_checkable
class Redone(Resumable, Protocol):
    """A part whose state is too large for a journal, which has `entry` and what leads to the rest instead."""

    def entry(self) -> Any:
        """Return the state, of the type of `state`, without what is done again; None: nothing is left of it."""

    def release(self) -> None:
        """Give back the memory of what `restore` brings, which must follow."""


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
    """State in a file, whose parts are still untyped; arrays are read when a part is asked for.

    Args:
        source: opens the file.
        places: places of the arrays in it, by path.
        checksum: checksum of all of it.
        after: checksum of the state that this one follows, in a journal; empty: none.

    Attributes:
        checksum, after: as given.
    """

    def __init__(
        self, source: Callable[[], BinaryIO], places: Mapping[str, array_file.Place], checksum: str, after: str
    ) -> None:
        self.checksum, self.after = checksum, after
        self._source = source
        self._places = places
        with source() as file:
            content = json.loads(array_file.read_array(file, places[_TEXT]).tobytes())
            whole = array_file.read_array(file, places[_BYTES]).tobytes()
        self._values: Mapping[str, Any] = content["values"]
        ends = np.cumsum(content["lengths"], dtype=np.int64).tolist()
        self._bytes = [whole[end - length : end] for end, length in zip(ends, content["lengths"], strict=True)]

    def __contains__(self, name: str) -> bool:
        """Return whether there is a part of this name."""
        return name in self._values

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

    def part_of(self, part: Resumable, name: str) -> Any:
        """Return the state of a part of a run, of the type that its method `state` is annotated with.

        Args:
            part: the part.
            name: its name in the state.

        Raises:
            CheckpointError: there is no such part, or it is of another type.
        """
        return self.part(name, _hints(type(part).state)["return"])

    def _typed(self, value: Any, kind: Any) -> Any:
        origin, arguments = get_origin(kind) or kind, get_args(kind)
        if origin in (Union, types.UnionType):
            if value is None:
                return None
            (kind,) = (argument for argument in arguments if argument is not types.NoneType)
            return self._typed(value, kind)
        if origin is np.ndarray:
            return self._array(value)
        if origin is torch.Tensor:
            return torch.from_numpy(self._array(value))
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

    def _array(self, path: str) -> NDArray[Any]:
        with self._source() as file:
            return array_file.read_array(file, self._places[path])


class Packed:
    """A state as it is written: `b"".join(pieces())` are the bytes of a safetensors file.

    Args:
        state: parts of the state by name; arrays are not copied.
        after: checksum of the state that this one follows, in a journal; empty: none.

    Attributes:
        checksum: checksum of all of it.
        size: number of bytes, but for those of the header.
    """

    def __init__(self, state: Mapping[str, Any], after: str = "") -> None:
        writer = _Writer()
        values = {name: writer.plain(part, name) for name, part in state.items()}
        text = json.dumps({"values": values, "lengths": [len(value) for value in writer.bytes]}).encode()
        self._arrays = {
            **writer.arrays,
            _BYTES: np.frombuffer(b"".join(writer.bytes), np.uint8),
            _TEXT: np.frombuffer(text, np.uint8),
        }
        digest = sha256(after.encode())
        array_file.checksum(self._arrays, digest.update)
        self.checksum = digest.hexdigest()
        self.size = sum(array.nbytes for array in self._arrays.values())
        self._after = after

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes piece by piece; no array is copied."""
        header = {"format": FORMAT, "version": str(VERSION), "checksum": self.checksum, "after": self._after}
        return array_file.pieces(self._arrays, header)


def pack(state: Mapping[str, Any]) -> bytes:
    """Return a state, part by part, as the bytes of a safetensors file."""
    return b"".join(Packed(state).pieces())


def unpack(source: bytes | Path) -> Saved:
    """Read a state that `Packed` has written; no array of it is in memory then.

    Args:
        source: the bytes, or the file with them, which must stay.

    Raises:
        Damaged: the bytes are torn, changed, or no checkpoint.
        CheckpointError: a newer or an older version of fedpress wrote them.
        OSError: the file cannot be read.
    """
    opened = functools.partial(io.BytesIO, source) if isinstance(source, bytes) else functools.partial(_open, source)
    with opened() as file:
        try:
            places, header = array_file.index(file)
            form, checksum, version = header["format"], header["checksum"], int(header["version"])
        except (KeyError, ValueError) as error:
            raise DamagedCheckpoint(
                f"it is torn, or no checkpoint of fedpress ({type(error).__name__}: {error})"
            ) from error
        if form != FORMAT:
            raise DamagedCheckpoint(f"it is no checkpoint of fedpress, but {form!r}")
        if version != VERSION:
            way = (
                "update fedpress"
                if version > VERSION
                else "finish that run with the fedpress that began it, or begin anew"
            )
            raise CheckpointError(f"it has format version {version}, this fedpress reads {VERSION}; {way}")
        after = header.get("after")
        digest = sha256((after or "").encode())
        array_file.checksum_of_file(file, places, digest.update)
    if after is None or checksum != digest.hexdigest() or not {_TEXT, _BYTES} <= places.keys():
        raise DamagedCheckpoint("its checksum does not fit its content")
    return Saved(opened, places, checksum, after)


def _open(path: Path) -> BinaryIO:
    return files.open_regular(path)


def restore(part: Resumable, saved: Saved, name: str) -> None:
    """Restore a part of a run from a checkpoint.

    Args:
        part: the part; its method `state` is annotated with the type that it returns.
        saved: state of the checkpoint.
        name: name of the part in it.

    Raises:
        CheckpointError: there is no such part, or it is of another run.
    """
    if isinstance(part, Redone):
        part.release()
    part.restore(saved.part_of(part, name))


def _fields(kind: Any) -> tuple[str, ...]:
    """Return the names of the fields of a named tuple or dataclass; of any other type none."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    names: tuple[str, ...] = getattr(kind, "_fields", ())
    return names


@functools.cache
def _hints(described: Any) -> dict[str, Any]:
    return get_type_hints(described)
