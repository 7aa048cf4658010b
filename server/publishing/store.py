"""Store of students' bundles on disk, by tier and version.

    <folder>/<tier>/<version>.fpb        version in ten digits, so that names sort as numbers do

A bundle appears atomically: it is written to a temporary file, flushed to disk and linked under its name. A published
version never changes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from fedpress.compression import files
from fedpress.compression.errors import FedpressError
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
        with files.flushed(bundle, path.parent) as temporary:
            try:
                os.link(temporary, path)  # unlike a rename, fails where the version exists
            except FileExistsError:
                if path.read_bytes() != bundle:
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
        """
        path = self._path(tier, version)
        try:
            return path.read_bytes()
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
            if re.fullmatch("[0-9]{10,}", path.stem) and re.fullmatch(TIER_NAME, path.parent.name) and path.is_file()
        ]
        return sorted(bundles)

    def _path(self, tier: str, version: int) -> Path:
        if not re.fullmatch(TIER_NAME, tier):
            raise StoreError(f"tier {tier!r}: expected at most 64 letters, digits, - and _, as it names a folder")
        if version < 0:
            raise StoreError(f"version {version}: expected 0 or more")
        return self.folder / tier / f"{version:010d}{SUFFIX}"
