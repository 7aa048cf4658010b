"""The catalog offers what the store holds, with the digest of each file, and nothing that is gone."""

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from fedpress.server.publishing import catalog
from fedpress.server.publishing.catalog import Catalog
from fedpress.server.publishing.store import ModelStore, NotPublished, StoreError

BUNDLES = {("phone", 1): b"one", ("phone", 12): b"twelve", ("sensor", 3): b"three"}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    made = ModelStore(tmp_path)
    for (tier, version), data in BUNDLES.items():
        made.put(data, tier=tier, version=version)
    return made


def test_every_bundle_is_offered_with_size_and_digest(store: ModelStore) -> None:
    offered = asyncio.run(Catalog(store).offered())
    assert [(bundle.tier, bundle.version) for bundle in offered] == sorted(BUNDLES)
    for bundle in offered:
        data = BUNDLES[bundle.tier, bundle.version]
        assert bundle.path.read_bytes() == data and bundle.size == len(data)
        assert bundle.sha256 == hashlib.sha256(data).digest()
        assert bundle.created == int(bundle.path.stat().st_mtime)


@pytest.mark.parametrize(
    ("tier", "newest_only", "versions"),
    [("phone", False, [1, 12]), ("phone", True, [12]), ("", True, [12, 3]), ("tablet", False, [])],
)
def test_a_tier_or_the_newest_alone(store: ModelStore, tier: str, newest_only: bool, versions: list[int]) -> None:
    assert [bundle.version for bundle in asyncio.run(Catalog(store).offered(tier, newest_only))] == versions


@pytest.mark.parametrize(("version", "expected"), [(0, 12), (1, 1), (12, 12)])
def test_a_version_is_found_and_the_newest_without_one(store: ModelStore, version: int, expected: int) -> None:
    assert asyncio.run(Catalog(store).find("phone", version)).version == expected


@pytest.mark.parametrize(
    ("tier", "version", "error", "message"),
    [
        ("phone", 2, NotPublished, "no version 2 of tier 'phone': the hub has 1 to 12"),
        ("tablet", 0, NotPublished, "no tier 'tablet': the hub has phone, sensor"),
        ("../phone", 0, StoreError, "expected at most 64 letters, digits"),
        ("x" * 10_000, 0, StoreError, "^tier 'x{80}'"),
    ],
)
def test_what_is_not_there_is_named(
    store: ModelStore, tier: str, version: int, error: type[StoreError], message: str
) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        asyncio.run(Catalog(store).find(tier, version))
    assert type(caught.value) is error


def test_an_empty_store_offers_nothing(tmp_path: Path) -> None:
    assert asyncio.run(Catalog(ModelStore(tmp_path)).offered()) == []
    with pytest.raises(NotPublished, match="the hub has none yet"):
        asyncio.run(Catalog(ModelStore(tmp_path)).find("phone"))


def test_many_devices_may_ask_at_once(store: ModelStore) -> None:
    async def ask() -> list[catalog.Offered]:
        offers = Catalog(store)
        return await asyncio.gather(*(offers.find("phone") for _ in range(50)))

    assert {bundle.sha256 for bundle in asyncio.run(ask())} == {hashlib.sha256(b"twelve").digest()}


def test_what_is_gone_is_not_offered(store: ModelStore) -> None:
    offers = Catalog(store)
    newest = asyncio.run(offers.find("phone"))
    newest.path.unlink()  # while the listing is still in use
    assert [bundle.version for bundle in asyncio.run(offers.offered("phone"))] == [1]
    with pytest.raises(NotPublished, match="no version 12 of tier 'phone'"):
        asyncio.run(offers.find("phone", 12))


def test_a_digest_is_computed_once_for_a_file(store: ModelStore) -> None:
    offers = Catalog(store)
    before = asyncio.run(offers.find("sensor"))
    times = before.path.stat()
    before.path.write_bytes(b"THREE")
    os.utime(before.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert asyncio.run(offers.find("sensor")) == before  # the same path, size and time: not read again
    os.utime(before.path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert asyncio.run(offers.find("sensor")).sha256 == hashlib.sha256(b"THREE").digest()


def test_a_new_version_appears_once_the_listing_is_old(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    offers = Catalog(store)
    asyncio.run(offers.offered())
    store.put(b"thirteen", tier="phone", version=13)
    monkeypatch.setattr(catalog, "FRESH_SECONDS", -1.0)
    assert asyncio.run(offers.find("phone")).version == 13
