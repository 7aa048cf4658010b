"""Pretrained bases that this device was sent: once for all federations on it, by the hash of the base.

    BASES/<SHA-256>/NAME.safetensors    a base that is whole and has this hash
    BASES/.<SHA-256>.part               the bytes so far of one that is on its way, file after file
    BASES/.<SHA-256>.parts              length and SHA-256 of each part of them
    BASES/.<SHA-256>.lock               locked while a part is added

A base is no client's state: it outlives that, and federations share it. A part is added only where the one before ends,
so that parts that come twice or in another order change nothing. Where the whole has another hash in the end, the first
part that differs on the disk, and all that follow, are asked for again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from logging import INFO, WARNING, getLogger
from pathlib import Path
from typing import Any, BinaryIO

from fedpress.compression import files, safetensors_files
from fedpress.compression.errors import BaseError
from fedpress.compression.messages.base_parts import BaseFile, BasePart

FOLDER = "base-folder"
"""Key of the node's configuration: the folder of the bases."""
_BLOCK = 1 << 20


class BaseMissing(BaseError):
    """This device has no copy of the federation's pretrained base; the server may send it.

    Args:
        text: For people.
        sha256: Hash of the base, hexadecimal.
        store: Where it would be kept.
    """

    def __init__(self, text: str, sha256: str, store: Bases) -> None:
        super().__init__(text)
        self.sha256 = sha256
        self.store = store


class Bases:
    """The bases of a device.

    Args:
        folder: Their folder, made when the first part comes; None: in the cache of this user.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._chosen = folder

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Bases:
        """Return the bases of the device that a configuration is of: in `base-folder`, if it names one."""
        chosen = config.get(FOLDER)
        return cls(Path(str(chosen)) if chosen else None)

    @cached_property
    def _folder(self) -> Path:
        return self._chosen or files.private_folder() / "bases"

    def find(self, sha256: str) -> Path | None:
        """Return the folder of a base that is whole; None: it is not here."""
        return path if (path := self._path(sha256)).is_dir() else None

    def discard(self, sha256: str) -> None:
        """Remove a base that no longer has its hash, so that it is asked for again."""
        shutil.rmtree(self._path(sha256), ignore_errors=True)

    def length(self, sha256: str) -> int:
        """Return the bytes of a base that have come so far, in whole parts."""
        return sum(length for length, _ in self._parts(sha256))

    def add(self, part: BasePart, sha256: str) -> bool:
        """Keep a part of a base, and return whether the base is whole with it.

        Args:
            part: A part whose own hash has been checked.
            sha256: Hash of the base that this device lacks.

        Raises:
            BaseError: It is of another base, the disk has no room, or cannot be written.
        """
        if part.sha256 != sha256:
            raise BaseError(f"base: the server sends the base of SHA-256 {part.sha256}, expected {sha256}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # One after the other: several processes may be sent the same base.
            with self._locked(sha256):
                if self.find(sha256):
                    return True
                self._append(part, sha256)
                return self.length(sha256) == part.size and self._finish(part.files, sha256)
        except OSError as error:
            raise BaseError(f"base: cannot keep a part of it in {self._folder}: {error.strerror or error}") from error

    def _append(self, part: BasePart, sha256: str) -> None:
        known, end = self._parts(sha256), part.offset + len(part.data)
        length = sum(size for size, _ in known)
        if not part.offset <= length < end:
            return  # it is here, or it is not its turn
        left, free = part.size - length + part.size, shutil.disk_usage(self._folder).free  # and its files, in the end
        if left > free:
            raise BaseError(f"base: it takes {left:,} more bytes, and {self._folder} has room for {free:,}")
        data = memoryview(part.data)[length - part.offset :]
        with self._part(sha256).open("r+b" if known else "wb") as file:
            file.truncate(length)  # what a kill has left half-written
            file.seek(length)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        known.append((len(data), hashlib.sha256(data).hexdigest()))
        files.write_atomically(self._list(sha256), json.dumps(known).encode())

    def _finish(self, listed: tuple[BaseFile, ...], sha256: str) -> bool:
        """Put the files of a base into their place, and return whether they are those of the hash."""
        temporary = self._folder / f".{sha256}.whole"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        with self._part(sha256).open("rb") as file:
            if [_digest(file, entry.size) for entry in listed] != [entry.sha256 for entry in listed]:
                self._cut_off_damaged(file, sha256)
                return False
            file.seek(0)
            for entry in listed:
                name = entry.name if len(listed) > 1 else safetensors_files.SINGLE
                files.write_atomically(temporary / name, _blocks(file, entry.size))
        os.replace(temporary, self._path(sha256))
        files.sync_folder(self._folder)
        self._list(sha256).unlink(missing_ok=True)
        self._part(sha256).unlink(missing_ok=True)
        getLogger("flwr").log(INFO, "the pretrained base of SHA-256 %s is whole, in %s", sha256, self._path(sha256))
        return True

    def _cut_off_damaged(self, file: BinaryIO, sha256: str) -> None:
        """Drop the first part that is not as it came, and what follows it; all, where every part is."""
        known, kept = self._parts(sha256), []
        file.seek(0)
        for length, digest in known:
            if _digest(file, length) != digest:
                break
            kept.append((length, digest))
        kept = [] if len(kept) == len(known) else kept
        text = "the base that came does not have its SHA-256 %s: it is asked for again after %d bytes"
        getLogger("flwr").log(WARNING, text, sha256, sum(length for length, _ in kept))
        files.write_atomically(self._list(sha256), json.dumps(kept).encode())

    def _parts(self, sha256: str) -> list[tuple[int, str]]:
        """Return length and hash of each part on the disk; what is not on the list is not there."""
        try:
            listed = [(int(length), str(digest)) for length, digest in json.loads(files.read_text(self._list(sha256)))]
            size = self._part(sha256).stat().st_size
        except (OSError, ValueError, TypeError):
            return []
        return listed if sum(length for length, _ in listed) <= size else []

    def _path(self, sha256: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise BaseError(f"base: {sha256[:80]!r} is no SHA-256, expected 64 hexadecimal digits")
        return self._folder / sha256

    def _part(self, sha256: str) -> Path:
        return self._path(sha256).with_name(f".{sha256}.part")

    def _list(self, sha256: str) -> Path:
        return self._path(sha256).with_name(f".{sha256}.parts")

    @contextmanager
    def _locked(self, sha256: str) -> Iterator[None]:
        with self._path(sha256).with_name(f".{sha256}.lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _digest(file: BinaryIO, length: int) -> str:
    digest = hashlib.sha256()
    for block in _blocks(file, length):
        digest.update(block)
    return digest.hexdigest()


def _blocks(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length and (block := file.read(min(_BLOCK, length))):
        length -= len(block)
        yield block
