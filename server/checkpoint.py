"""Checkpoints: all that a run depends on, in one file for each round, whole or not at all.

    <folder>/round-00000012.safetensors     arrays, and in the header's metadata a JSON text with the rest

The newest few are kept. A file that is torn or foreign is never used: it is moved aside (`.damaged`), and the one
before it is read. No pickle: a checkpoint cannot run code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from logging import ERROR
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from flwr.supercore import log
from numpy.typing import NDArray

from fedpress.compression import files
from fedpress.compression.errors import FedpressError

FORMAT = "fedpress.checkpoint"
VERSION = 2  # 1: before buffered rounds
KEEP = 3
_NAME = re.compile(r"round-(\d{8})\.safetensors")


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


class Found(NamedTuple):
    """A checkpoint that was read."""

    round: int
    state: State
    skipped: int  # newer ones that were damaged


class CheckpointFolder:
    """The checkpoints of one federation.

    Args:
        path: the folder; made if it is absent.
        keep: how many of the newest stay.

    Raises:
        CheckpointError: the folder cannot be made.
        ValueError: `keep` is below 1.
    """

    def __init__(self, path: Path | str, keep: int = KEEP) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1 checkpoint")
        self.path = Path(path)
        self._keep = keep
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the folder of checkpoints {self.path}: {error}") from error

    def rounds(self) -> list[int]:
        """Return the rounds that there are checkpoints of, in order."""
        return sorted(int(match[1]) for path in self.path.iterdir() if (match := _NAME.fullmatch(path.name)))

    def save(self, round: int, state: State) -> None:
        """Write the checkpoint of a round; it is on the disk when this returns. Old ones are removed.

        Raises:
            CheckpointError: it cannot be written; the earlier ones are untouched.
        """
        path = self._path(round)
        try:
            files.write_atomically(path, pack(state))
            for old in [there for there in self.rounds() if there < round][: -self._keep + 1 or None]:
                self._path(old).unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot write the checkpoint {path}: {error}; the one before it is untouched. Make room on the disk,"
                " then the run can go on from there"
            ) from error

    def newest(self) -> Found | None:
        """Read the newest checkpoint that is whole; damaged ones are moved aside, and the log says so.

        Nobody else may be writing there: what killed writes have left is removed.

        Returns:
            The checkpoint; None in a folder that never held one.

        Raises:
            CheckpointError: there are only damaged ones, or the newest needs a newer fedpress.
        """
        files.remove_leftovers(self.path)
        skipped = 0
        for round in reversed(self.rounds()):
            path = self._path(round)
            try:
                return Found(round, unpack(path.read_bytes()), skipped)
            except Damaged as error:
                aside = files.move_aside(path)
                log(ERROR, "the checkpoint %s cannot be used: %s. It is now %s", path, error, aside.name)
                skipped += 1
            except CheckpointError as error:
                raise CheckpointError(f"the checkpoint {path} cannot be used: {error}") from None
        if any(self.path.glob(f"*{files.DAMAGED}*")):
            raise CheckpointError(
                f"no checkpoint in {self.path} can be used, all are damaged; restore one from a backup, or remove the"
                " folder to start anew"
            )
        return None

    def _path(self, round: int) -> Path:
        return self.path / f"round-{round:08d}.safetensors"


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
