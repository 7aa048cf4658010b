"""Journal of the rounds since a checkpoint: one entry after the other in a file, each on the disk before the next.

    entry:    u64 length, u32 CRC-32 of it, then a state (`state.Packed`) of this length, which names the one before it

Law: what is read is a beginning of what was appended. A kill may tear the last entry, about which nobody was told
anything yet: it is cut off, and nothing is lost. Any other damage is found by checksums.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fedpress.compression import files
from fedpress.server.checkpoint.state import DamagedCheckpoint, Packed, Saved, unpack

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_FRAME = _LENGTH.size + _CRC.size


class Entry(NamedTuple):
    """An entry that was read."""

    start: int  # of its frame in the file
    stop: int
    saved: Saved


class Journal:
    """The entries after one checkpoint.

    Args:
        path: the file; absent: there are none.
        base: checksum of the checkpoint.
    """

    def __init__(self, path: Path, base: str) -> None:
        self.path = path
        self._base = base

    def append(self, entry: Packed) -> int:
        """Append an entry; it is on the disk when this returns.

        Args:
            entry: an entry that names the one before it, or the checkpoint.

        Returns:
            The length of the journal in bytes.

        Raises:
            OSError: it cannot be written; those before it are untouched.
        """
        pieces = list(entry.pieces())
        length = _LENGTH.pack(sum(len(piece) for piece in pieces))
        begin = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.writelines([length, _CRC.pack(zlib.crc32(length)), *pieces])
                file.flush()
                os.fsync(file.fileno())
                end = file.tell()
        except BaseException:  # once the file is closed, which writes what is left
            os.truncate(self.path, begin)
            raise
        if not begin:
            files.sync_folder(self.path.parent)
        return end

    def entries(self) -> Iterator[Entry]:
        """Yield the entries, one in memory at a time.

        A torn end is none. The same goes for entries of another checkpoint, which this one has replaced.

        Raises:
            DamagedCheckpoint: the next entry is damaged.
            CheckpointError: another version of fedpress has written it.
            OSError: the file cannot be read.
        """
        if not self.path.exists():
            return
        before = self._base
        with files.open_regular(self.path) as file:
            size, start = os.fstat(file.fileno()).st_size, 0
            while (stop := _end(file, start, size)) is not None:
                saved = unpack(file.read(stop - start - _FRAME))
                if saved.after != before:
                    if start:
                        raise DamagedCheckpoint("an entry of the journal does not follow the one before it")
                    return
                yield Entry(start, stop, saved)
                before, start = saved.checksum, stop

    def cut(self, end: int, *, keep: bool) -> None:
        """Remove all from a place on.

        Args:
            end: the place, in bytes.
            keep: whether the whole file is kept beside it, as it is damaged.

        Raises:
            OSError: it cannot be done.
        """
        if not self.path.exists() or self.path.stat().st_size <= end:
            return
        good = b""
        if keep:
            with files.open_regular(self.path) as file:
                good = file.read(end)
            files.move_aside(self.path)
        if keep and good:
            files.write_atomically(self.path, good)
        elif end and not keep:
            with self.path.open("r+b") as file:
                file.truncate(end)
                os.fsync(file.fileno())
        else:
            self.path.unlink(missing_ok=True)


def _end(file: BinaryIO, start: int, size: int) -> int | None:
    """Return the end of the entry whose frame begins at `start`; None: there is none, or a torn one.

    The file is left at the beginning of its state.
    """
    if size - start < _FRAME:
        return None
    file.seek(start)
    frame = file.read(_FRAME)
    length, check = frame[: _LENGTH.size], frame[_LENGTH.size :]
    if _CRC.unpack(check)[0] != zlib.crc32(length):
        raise DamagedCheckpoint("the length of an entry in the journal is damaged")
    stop = start + _FRAME + int(_LENGTH.unpack(length)[0])
    return stop if stop <= size else None
