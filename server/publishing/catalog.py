"""Catalog of the bundles that the hub offers, with sizes and SHA-256 digests.

A published version never changes, so its digest is computed once for a path, size and time of modification.
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

from fedpress.compression.models.bundles import container
from fedpress.compression.models.bundles.manifest import TIER_NAME
from fedpress.server.publishing import store
from fedpress.server.publishing.store import ModelStore, NotPublished, StoredBundle, StoreError

_T = TypeVar("_T")
FRESH_SECONDS: Final = 1.0
"""Lifetime of a listing of the folder: many devices may ask at once, and a new version may wait that long."""


class Offered(NamedTuple):
    """A bundle on offer.

    Attributes:
        tier: Name of its tier.
        version: Version of the global model.
        path: Path of the file.
        size: Size of the file, in bytes.
        sha256: SHA-256 of the file, 32 bytes.
        created: Time of publication, in seconds since 1970.
    """

    tier: str
    version: int
    path: Path
    size: int
    sha256: bytes
    created: int


class Catalog:
    """Published bundles of a store; a thread of the catalog's own does all disk access.

    Args:
        bundles: Store of the bundles.
    """

    def __init__(self, bundles: ModelStore) -> None:
        self._store = bundles
        self._thread = ThreadPoolExecutor(1, "catalog")  # one: no file is hashed twice at the same time
        self._digests: dict[tuple[Path, int, int], bytes] = {}
        self._listed: list[StoredBundle] = []
        self._listed_at = float("-inf")

    async def offered(self, tier: str = "", newest_only: bool = False) -> list[Offered]:
        """Return the bundles on offer, in order of tier and version.

        Args:
            tier: Name of a tier; "": all tiers.
            newest_only: Whether to return only the newest version of each tier.
        """
        return await self._in_thread(lambda: self._list(tier, newest_only))

    async def find(self, tier: str, version: int = 0) -> Offered:
        """Return a bundle.

        Args:
            tier: Name of the tier.
            version: Version of the global model; 0: the newest.

        Raises:
            NotPublished: The store has no such bundle; the message lists what it has.
            StoreError: `tier` is no valid name of a tier.
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

    def _scan(self) -> list[StoredBundle]:
        if time.monotonic() > self._listed_at + FRESH_SECONDS:
            self._listed, self._listed_at = self._store.list(), time.monotonic()
            paths = {bundle.path for bundle in self._listed}
            self._digests = {key: digest for key, digest in self._digests.items() if key[0] in paths}
        return self._listed

    def _offered(self, stored: StoredBundle) -> Offered | None:
        """Return the bundle with size and digest; None where the file cannot be read, or is too large for one."""
        try:
            with store.open_bundle(stored.path) as file:
                status = os.fstat(file.fileno())
                if status.st_size > container.MAX_BYTES:
                    return None
                key = (stored.path, status.st_size, status.st_mtime_ns)
                if key not in self._digests:
                    self._digests[key] = hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return None
        return Offered(*stored, status.st_size, self._digests[key], int(status.st_mtime))
