"""Atomic writes: a file is complete or absent, also after a crash (written beside its place, flushed, renamed)."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

DAMAGED = ".damaged"
"""Suffix of a file that was moved aside."""
_PART = ".part"


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write or replace a file, so that neither a reader nor a crash nor a full disk meets half of it.

    Args:
        path: File in an existing folder.
        data: The content, or its pieces in order.

    Raises:
        OSError: The file cannot be written; the one before is untouched.
    """
    with flushed(data, path.parent) as temporary:
        os.replace(temporary, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def flushed(data: bytes | Iterable[bytes], folder: Path) -> Iterator[Path]:
    """Write a temporary file, flush it to the disk and yield its path; it is removed at the end unless it was renamed.

    Args:
        data: The content, or its pieces in order.
        folder: Where the file will be renamed: renaming is atomic within one file system only.

    Raises:
        OSError: The file cannot be written; nothing is left behind.
    """
    handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=_PART)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's files are for their owner alone
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that a new name in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_aside(path: Path) -> Path:
    """Rename a damaged file, which keeps it for inspection and out of the way of readers; return its new path.

    Raises:
        OSError: The file cannot be renamed.
    """
    number = 1
    while True:
        aside = path.with_name(path.name + DAMAGED + (f"-{number}" if number > 1 else ""))
        if not aside.exists():
            os.replace(path, aside)
            sync_folder(path.parent)
            return aside
        number += 1


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writes that were killed; no other process may be writing to the folder.

    Raises:
        OSError: A file cannot be removed.
    """
    for path in folder.glob(f".*{_PART}"):
        path.unlink(missing_ok=True)
