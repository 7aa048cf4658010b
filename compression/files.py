"""Files that are there as a whole or not at all, also after a crash: written beside the place, flushed, renamed."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

DAMAGED = ".damaged"
"""Ends the name of a file that was moved aside."""
_PART = ".part"


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write or replace a file, from pieces or one; a reader, a crash or a full disk never sees or leaves half of it.

    Raises:
        OSError: It cannot be written; what was there before is untouched.
    """
    with flushed(data, path.parent) as temporary:
        os.replace(temporary, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def flushed(data: bytes | Iterable[bytes], folder: Path) -> Iterator[Path]:
    """Write `data` to a temporary file in `folder` and flush it to the disk; it is removed unless it was renamed.

    Raises:
        OSError: It cannot be written; nothing is left behind.
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
    """Make a new name in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_aside(path: Path) -> Path:
    """Rename a damaged file, so that nobody reads it by mistake and whoever wants to can look; return its new path.

    Raises:
        OSError: It cannot be renamed.
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
    """Remove what writes that were killed have left in a folder; nobody may be writing there.

    Raises:
        OSError: One cannot be removed.
    """
    for path in folder.glob(f".*{_PART}"):
        path.unlink(missing_ok=True)
