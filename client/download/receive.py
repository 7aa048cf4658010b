"""A student's bundle as a client keeps it: verified before it is kept, whole or not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn

from fedpress.compression import files
from fedpress.compression.models.bundles import errors, reader, writer
from fedpress.compression.models.task import Task


class NotWhatWasOffered(errors.BundleError):
    """The bytes are not those whose SHA-256 the server announced."""


def receive(data: bytes, sha256: str, folder: Path) -> Path:
    """Verify a downloaded bundle and keep it, named by tier and version; return its path.

    Nothing is written if it does not verify, and the earlier file of that name stays.

    Args:
        data: The bundle as it arrived.
        sha256: Of the whole file, in hexadecimal, as the server announced it.
        folder: Made if it is absent.

    Raises:
        NotWhatWasOffered: The SHA-256 is another.
        BundleError: The bundle is not valid, for another reason.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != sha256.lower():
        raise NotWhatWasOffered(
            f"the {len(data):,} bytes have SHA-256 {found}, the server announced {sha256}: damaged on the way, or"
            " another file; download it again"
        )
    manifest = reader.open_bundle(data).manifest
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{manifest.tier}-{manifest.version:010d}.fpb"
    files.write_atomically(path, data)
    return path


def load(path: Path, task: Task) -> nn.Module:
    """Return the student that a kept bundle holds, verified once more, ready to be evaluated.

    Raises:
        BundleError: The file was damaged since, or is not for this task.
    """
    return writer.rebuild(reader.open_bundle(path.read_bytes()), task)
