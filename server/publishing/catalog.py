"""What the hub offers: the published bundles of a store, each with its size and SHA-256.

A published version never changes, so a digest is computed once for a file of that path, size and time.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from fedpress.compression.models.bundles.manifest import TIER_NAME
from fedpress.server.publishing.store import ModelStore, NotPublished, Stored, StoreError

_T = TypeVar("_T")
FRESH_SECONDS: Final = 1.0
"""How long a listing of the folder is used: many devices may ask at once, and a new version may wait that long."""


class Offered(NamedTuple):
    """A bundle that can be had.

    Attributes:
        tier, version: Of what it is the file.
        path: The file.
        size: In bytes.
        sha256: Of the whole file, 32 bytes.
        created: When it was published, seconds since 1970.
    """

    tier: str
    version: int
    path: Path
    size: int
    sha256: bytes
    created: int


class Catalog:
    """The published bundles; whatever waits for the disk does so in a thread of its own.

    Args:
        store: Whose bundles.
    """

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, "catalog")  # one: no file is hashed twice at the same time
        self._digests: dict[tuple[Path, int, int], bytes] = {}
        self._listed: list[Stored] = []
        self._listed_at = float("-inf")

    async def offered(self, tier: str = "", newest_only: bool = False) -> list[Offered]:
        """Return what there is, by tier and version; an empty `tier` stands for all."""
        return await self._in_thread(lambda: self._list(tier, newest_only))

    async def find(self, tier: str, version: int = 0) -> Offered:
        """Return a version of a tier; 0: the newest.

        Raises:
            NotPublished: There is none; the message says what there is.
            StoreError: No tier can have that name.
        """
        return await self._in_thread(lambda: self._find(tier, version))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _list(self, tier: str, newest_only: bool) -> list[Offered]:
        stored = [bundle for bundle in self._scan() if tier in ("", bundle.tier)]
        if newest_only:
            # They are sorted: the last of a tier is its newest.
            stored = list({bundle.tier: bundle for bundle in stored}.values())
        return [offered for bundle in stored if (offered := self._offered(bundle))]

    def _find(self, tier: str, version: int) -> Offered:
        if not re.fullmatch(TIER_NAME, tier):
            raise StoreError(f"tier {tier[:80]!r}: expected at most 64 letters, digits, - and _")
        scanned = self._scan()
        versions = {bundle.version: bundle for bundle in scanned if bundle.tier == tier}
        if not versions:
            tiers = ", ".join(sorted({bundle.tier for bundle in scanned}))
            raise NotPublished(f"there is no tier {tier!r}: the hub has {tiers or 'none yet'}")
        stored = versions.get(version or max(versions))
        offered = self._offered(stored) if stored else None
        if offered is None:
            raise NotPublished(
                f"there is no version {version} of tier {tier!r}: the hub has {min(versions)} to {max(versions)}"
            )
        return offered

    def _scan(self) -> list[Stored]:
        if time.monotonic() > self._listed_at + FRESH_SECONDS:
            self._listed, self._listed_at = self._store.list(), time.monotonic()
            paths = {bundle.path for bundle in self._listed}
            self._digests = {key: digest for key, digest in self._digests.items() if key[0] in paths}
        return self._listed

    def _offered(self, stored: Stored) -> Offered | None:
        """None: the file is gone, or is none."""
        try:
            with stored.path.open("rb") as file:
                status = os.fstat(file.fileno())
                key = (stored.path, status.st_size, status.st_mtime_ns)
                if key not in self._digests:
                    self._digests[key] = hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return None
        return Offered(*stored, status.st_size, self._digests[key], int(status.st_mtime))
