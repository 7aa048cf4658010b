"""Parts of a pretrained base, as an order brings them to a client that has no copy of it.

    fedpress.base    files: JSON, a list of [name, bytes, SHA-256]
                     offset: bytes of the base before this part; the base is its files one after the other
                     data, sha256: the part, and its SHA-256

The server reads a part from the files of its own base (`BaseSource`), the client keeps it (`client.state.bases`) and
asks for the next one by the number of bytes that it has. So a broken link, or a process that is killed, costs one part.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import ConfigRecord, RecordDict

from fedpress.compression import files, safetensors_files
from fedpress.compression.messages.orders import BASE, MessageError

PART_BYTES = 1 << 26
"""Bytes of a part: what a broken link costs, and what one message adds to the memory of both sides."""
MOST_FILES = 10_000
"""Files that a base may have."""


class BaseFile(NamedTuple):
    """A file of a base."""

    name: str
    size: int  # in bytes
    sha256: str


class BasePart(NamedTuple):
    """Part of a base."""

    files: tuple[BaseFile, ...]
    offset: int  # bytes before it
    data: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the whole base, by which federations name it (`safetensors_files.sha256`)."""
        return safetensors_files.sha256_of_list([(file.name, file.sha256) for file in self.files])

    @property
    def size(self) -> int:
        """Bytes of the whole base."""
        return sum(file.size for file in self.files)

    @property
    def is_last(self) -> bool:
        """Whether the base is whole with it."""
        return self.offset + len(self.data) == self.size


class BaseSource:
    """The base on the server, read part by part.

    Args:
        path: File or folder, as of `safetensors_files.files_of`.
        part_bytes: Bytes of a part.

    Raises:
        WeightsError: There is none.
    """

    def __init__(self, path: Path, part_bytes: int = PART_BYTES) -> None:
        self._path = path
        self._part_bytes = part_bytes

    @functools.cached_property
    def files(self) -> tuple[BaseFile, ...]:
        """The files, in the order of their names."""
        found = safetensors_files.files_of(self._path)
        return tuple(BaseFile(file.name, file.stat().st_size, safetensors_files.sha256(file)) for file in found)

    @property
    def sha256(self) -> str:
        """SHA-256 of the base."""
        return BasePart(self.files, 0, b"").sha256

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-BasePart(self.files, 0, b"").size // self._part_bytes)

    def part(self, offset: int) -> BasePart:
        """Return the part that begins after some bytes; from the beginning where there are fewer.

        Args:
            offset: Number of the bytes before it.

        Raises:
            OSError: A file cannot be read.
        """
        whole = BasePart(self.files, 0, b"")
        offset = offset if offset <= whole.size else 0
        data, start = b"", 0
        for path, file in zip(safetensors_files.files_of(self._path), self.files, strict=True):
            begin = max(offset + len(data) - start, 0)
            if begin < file.size and len(data) < self._part_bytes:
                with files.open_regular(path) as opened:
                    opened.seek(begin)
                    data += opened.read(min(file.size - begin, self._part_bytes - len(data)))
            start += file.size
        return BasePart(self.files, offset, data)


def write(part: BasePart) -> ConfigRecord:
    """Return a part as a record of a message."""
    digest = hashlib.sha256(part.data).digest()
    return ConfigRecord({"files": json.dumps(part.files), "offset": part.offset, "data": part.data, "sha256": digest})


def find(content: RecordDict) -> BasePart | None:
    """Return the part of a base in a message's records; None: there is none.

    Args:
        content: The records, whose long entries are whole (`pieces.join`).

    Raises:
        MessageError: It is damaged, or malformed.
    """
    record = content.config_records.get(BASE)
    if record is None:
        return None
    offset, data = record.get("offset"), record.get("data")
    if not isinstance(data, bytes) or not isinstance(offset, int) or offset < 0:
        raise MessageError("the part of the base lacks its bytes or its place")
    if hashlib.sha256(data).digest() != record.get("sha256"):
        raise MessageError(f"the part of the base after {offset:,} bytes does not have the SHA-256 that it came with")
    part = BasePart(_files(record.get("files")), offset, data)
    if offset + len(data) > part.size:
        raise MessageError(f"the part of the base ends after {offset + len(data):,} bytes, the base has {part.size:,}")
    return part


def _files(text: Any) -> tuple[BaseFile, ...]:
    try:
        listed = tuple(BaseFile(*entry) for entry in json.loads(text))
        named = {file.name for file in listed}
        if not 0 < len(named) == len(listed) <= MOST_FILES:
            raise ValueError("no files, too many, or two of the same name")
        for file in listed:
            if type(file.size) is not int or file.size < 1 or len(bytes.fromhex(file.sha256)) != 32:
                raise ValueError(f"size {file.size!r}, SHA-256 {file.sha256!r}")
            if Path(file.name).name != file.name or file.name.startswith(".") or "\0" in file.name:
                raise ValueError(f"name {file.name!r}")
    except (TypeError, ValueError, AttributeError) as error:
        raise MessageError(f"the list of the base's files is malformed: {str(error)[:200]}") from None
    return listed
