"""Store of students' bundles on disk, by tier and version.

    <folder>/<tier>/<version>.fpb        version in ten digits, so that names sort as numbers do

A bundle appears atomically: it is written to a temporary file, flushed to disk and linked under its name. A published
version never changes. Only regular files of regular folders are bundles: a symbolic link could lead out of the store,
and a hub would serve what is there.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fedpress.compression import files
from fedpress.compression.errors import FedpressError
from fedpress.compression.models.bundles.container import MAX_BYTES
from fedpress.compression.models.bundles.manifest import TIER_NAME

SUFFIX = ".fpb"


class StoreError(FedpressError, ValueError):
    """A name or version is invalid, or a published version would change."""


class NotPublished(StoreError):
    """The store has no such bundle."""


class StoredBundle(NamedTuple):
    """A bundle in the store: its tier, the version of the global model, and the path of the file."""

    tier: str
    version: int
    path: Path


class ModelStore:
    """The bundles under one folder; several processes may read it while one publishes.

    >>> import tempfile
    >>> store = ModelStore(Path(tempfile.mkdtemp()))
    >>> _ = store.put(b"bundle", tier="phone", version=7)
    >>> store.latest("phone").version, store.get("phone", 7)
    (7, b'bundle')

    Args:
        folder: Folder of the store, created if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, bundle: bytes, *, tier: str, version: int) -> Path:
        """Publish a bundle and return its path; publishing the same bytes again is no error.

        Args:
            bundle: Bytes of the file.
            tier: Name of the tier.
            version: Version of the global model, >= 0.

        Raises:
            StoreError: The tier's name or the version is invalid, or this version exists with other bytes.
        """
        path = self._path(tier, version)
        path.parent.mkdir(exist_ok=True)
        if path.parent.is_symlink():
            raise StoreError(f"{path.parent} is a symbolic link; the store needs folders of its own")
        with files.flushed(bundle, path.parent) as temporary:
            try:
                os.link(temporary, path)  # unlike a rename, fails where the version exists
            except FileExistsError:
                if _read(path) != bundle:
                    raise StoreError(
                        f"version {version} of tier {tier!r} is published already, with other bytes: a version never"
                        " changes; publish a new one, or use another folder"
                    ) from None
        files.sync_folder(path.parent)
        return path

    def get(self, tier: str, version: int) -> bytes:
        """Return the bytes of a bundle.

        Args:
            tier: Name of the tier.
            version: Version of the global model.

        Raises:
            NotPublished: The tier has no such version.
            StoreError: What has its name is a link, no regular file, or too large for a bundle.
        """
        path = self._path(tier, version)
        try:
            return _read(path)
        except FileNotFoundError:
            versions = [stored.version for stored in self.list() if stored.tier == tier]
            raise NotPublished(
                f"no version {version} of tier {tier!r}: the store has {versions or 'none of it'}"
            ) from None

    def latest(self, tier: str) -> StoredBundle:
        """Return the newest bundle of a tier.

        Raises:
            NotPublished: The tier has none.
        """
        versions = [stored for stored in self.list() if stored.tier == tier]
        if not versions:
            tiers = sorted({stored.tier for stored in self.list()})
            raise NotPublished(f"no bundle of tier {tier!r}: the store has {tiers or 'none'}")
        return versions[-1]

    def list(self) -> list[StoredBundle]:
        """Return all bundles, by tier and version."""
        bundles = [
            StoredBundle(path.parent.name, int(path.stem), path)
            for path in self.folder.glob(f"*/*{SUFFIX}")
            if re.fullmatch("[0-9]{10,19}", path.stem, re.ASCII)
            and re.fullmatch(TIER_NAME, path.parent.name)
            and _is_regular(path)
        ]
        return sorted(bundles)

    def _path(self, tier: str, version: int) -> Path:
        if not re.fullmatch(TIER_NAME, tier):
            raise StoreError(f"tier {tier!r}: expected at most 64 letters, digits, - and _, as it names a folder")
        if version < 0:
            raise StoreError(f"version {version}: expected 0 or more")
        return self.folder / tier / f"{version:010d}{SUFFIX}"


def _is_regular(path: Path) -> bool:
    """Return whether a path of the store is a regular file in a regular folder, without following a link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode) and stat.S_ISDIR(path.parent.lstat().st_mode)
    except OSError:
        return False


def open_bundle(path: Path) -> BinaryIO:
    """Open a bundle of a store; neither the file nor its folder may be a symbolic link, also if swapped just now.

    Raises:
        OSError: It is no regular file of a regular folder.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return files.open_regular(path.name, follow=False, folder=folder)
    finally:
        os.close(folder)


def _read(path: Path) -> bytes:
    try:
        with open_bundle(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise StoreError(f"{path} has {size:,} bytes, and a bundle at most {MAX_BYTES:,}")
            return file.read(size + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from None
