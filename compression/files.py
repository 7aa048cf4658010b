"""Files, read with a bound, and written atomically.

A path that somebody else has named may lead to a device that never ends, a pipe that nobody writes to, or a file larger
than the memory: `open_regular` and `read_regular` take regular files alone. A file that is written is complete or
absent, also after a crash (written beside its place, flushed, renamed).
"""

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

MOST_TEXT = 1 << 24
"""Bytes that a file of settings, keys or other text may have."""
MOST_DATA = 1 << 34
"""Bytes that a file of data, of a model or of a checkpoint may have."""
DAMAGED = ".damaged"
"""Suffix of a file that was moved aside."""
_PART = ".part"


def open_regular(path: Path | str, *, follow: bool = True, folder: int | None = None) -> BinaryIO:
    """Open a regular file for reading; what it is, is asked of the opened file, so that nobody can swap it between.

    Args:
        path: The file.
        follow: Whether the last part of the path may be a symbolic link.
        folder: Descriptor of an open folder that the path begins at; None: the current one.

    Raises:
        OSError: It cannot be opened, or is a device, a pipe, a socket or a folder, or a link that is not followed.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise OSError(errno.ELOOP, "it is a symbolic link", str(path)) from None
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there
            raise OSError(errno.ENXIO, "it is no regular file", str(path)) from None
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path | str, most: int, *, follow: bool = True) -> bytes:
    """Return the bytes of a regular file; never more than `most` are read, whatever size the file says it has.

    Args:
        path: The file.
        most: Largest number of bytes.
        follow: As of `open_regular`.

    Raises:
        OSError: As `open_regular`, or the file is larger.
    """
    with open_regular(path, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1) if size <= most else b""
        while size <= most >= len(data) and (more := file.read(1 << 20)):  # it grows, or is of a kind without a size
            data += more
    if size > most or len(data) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
    return data


def read_text(path: Path | str, most: int = MOST_TEXT) -> str:
    """Return the text of a regular file, which is UTF-8.

    Args:
        path: The file.
        most: Largest number of bytes.

    Raises:
        OSError: As `read_regular`.
        UnicodeDecodeError: It is no UTF-8.
    """
    return read_regular(path, most).decode()


def private_folder() -> Path:
    """Return a folder of this user's own for what may be downloaded again, made with mode 700.

    A folder below the common temporary one, with a name that others can guess, could be made by them first.

    Raises:
        OSError: It cannot be made, is no folder, or belongs to somebody else.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base, "fedpress")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it belongs to another user", str(folder))
    if status.st_mode & 0o022:
        folder.chmod(0o700)
    return folder


def write_atomically(path: Path, data: bytes | Iterable[bytes | memoryview]) -> None:
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
def flushed(data: bytes | Iterable[bytes | memoryview], folder: Path) -> Iterator[Path]:
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
