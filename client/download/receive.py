"""Bundles of students that come in a Flower message: verified, then written whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn

from fedpress.compression import files
from fedpress.compression.models.bundles import bases, container, errors, reader, writer
from fedpress.compression.models.task import Task


class NotWhatWasOffered(errors.BundleError):
    """The bytes are not those whose SHA-256 the server announced."""


def receive(data: bytes, sha256: str, folder: Path, limit: int = container.LIMIT) -> Path:
    """Verify a downloaded bundle, write it under its tier and version, and return its path.

    Nothing is written if it does not verify, and the earlier file of that name stays.

    Args:
        data: The bundle as it arrived.
        sha256: SHA-256 of the whole file that the server announced, in hexadecimal.
        folder: Folder for the file; made if it is absent.
        limit: Most bytes that this device takes: of the file, and of what is decoded from it.

    Raises:
        NotWhatWasOffered: The bytes have another SHA-256.
        BundleError: The bundle is not valid, for another reason.
    """
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256.lower():
        raise NotWhatWasOffered(
            f"the {len(data):,} bytes have SHA-256 {digest}, the server announced {sha256}: damaged on the way, or"
            " another file; download it again"
        )
    manifest = reader.open_bundle(data, limit=limit).manifest
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{manifest.tier}-{manifest.version:010d}.fpb"
    files.write_atomically(path, data)
    return path


def load(path: Path, task: Task, base: Path | None = None, *, limit: int = container.LIMIT) -> nn.Module:
    """Return the student of a bundle that was kept, verified once more, ready to be evaluated.

    Args:
        path: File with the bundle.
        task: Task of the student.
        base: Pretrained weights of this device, for a bundle that builds on them; None: those in `bases.FOLDER` beside
            the bundle.
        limit: Most bytes that this device takes: of the file, and of what is decoded from it.

    Raises:
        BundleError: The file was damaged since, or is not for this task, or its base is not here.
    """
    opened = reader.open_bundle(files.read_regular(path, limit), limit=limit)
    return writer.rebuild(bases.with_base(opened, base, path.parent / bases.FOLDER), task)
