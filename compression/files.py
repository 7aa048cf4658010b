"""Files that are there as a whole or not at all, also after a crash: written beside the place, flushed, renamed."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write or replace a file; a reader, a crash or a full disk never sees or leaves half of it.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    with flushed(data, path.parent) as temporary:
        os.replace(temporary, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def flushed(data: bytes, folder: Path) -> Iterator[Path]:
    """Write `data` to a temporary file in `folder` and flush it to the disk; it is removed unless it was renamed.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
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
