"""The store: whole bundles or none, versions that never change, also under several processes."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpress.server.publishing.store import ModelStore, NotPublished, StoreError, open_bundle


def test_what_is_put_can_be_got(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "new" / "folder")
    path = store.put(b"one", tier="phone", version=7)
    assert path.read_bytes() == store.get("phone", 7) == b"one"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [child.name for child in path.parent.iterdir()] == ["0000000007.fpb"]  # no temporary file stays


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from(["phone", "sensor"]), st.integers(0, 10**9)), unique=True, min_size=1))
def test_the_latest_is_the_highest_version_in_whatever_order_they_came(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[str, int]]
) -> None:
    store = ModelStore(tmp_path_factory.mktemp("store"))
    for tier, version in puts:
        store.put(f"{tier} {version}".encode(), tier=tier, version=version)
    assert [(stored.tier, stored.version) for stored in store.list()] == sorted(puts)
    for tier in {tier for tier, _ in puts}:
        newest = store.latest(tier)
        assert newest.version == max(version for name, version in puts if name == tier)
        assert newest.path.read_bytes() == f"{tier} {newest.version}".encode()


def test_the_same_bytes_again_are_no_error_and_other_bytes_are(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.put(b"one", tier="phone", version=1)
    store.put(b"one", tier="phone", version=1)
    with pytest.raises(StoreError, match="version 1 of tier 'phone' is published already"):
        store.put(b"two", tier="phone", version=1)
    assert store.get("phone", 1) == b"one"
    assert len(list((tmp_path / "phone").iterdir())) == 1


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with pytest.raises(NotPublished, match="no bundle of tier 'phone': the store has none"):
        store.latest("phone")
    store.put(b"one", tier="sensor", version=3)
    with pytest.raises(NotPublished, match=r"the store has \['sensor'\]"):
        store.latest("phone")
    with pytest.raises(NotPublished, match=r"no version 4 of tier 'sensor': the store has \[3\]"):
        store.get("sensor", 4)


@pytest.mark.parametrize("tier", ["", "..", "../other", "a/b", ".hidden", "x" * 65, "phone\n"])
def test_a_tier_that_is_no_name_is_refused(tmp_path: Path, tier: str) -> None:
    store = ModelStore(tmp_path / "store")
    with pytest.raises(StoreError, match="letters, digits"):
        store.put(b"one", tier=tier, version=1)
    with pytest.raises(StoreError, match="letters, digits"):
        store.get(tier, 1)
    assert list(tmp_path.rglob("*.fpb")) == []


def test_a_negative_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="version -1"):
        ModelStore(tmp_path).put(b"one", tier="phone", version=-1)


def test_a_half_written_file_is_never_listed(tmp_path: Path) -> None:
    """What a killed process leaves: a temporary file."""
    store = ModelStore(tmp_path)
    store.put(b"one", tier="phone", version=1)
    (tmp_path / "phone" / ".abc.part").write_bytes(b"tw")
    assert [stored.version for stored in store.list()] == [1]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ModelStore(tmp_path).put(b"one", tier="phone", version=1)
    assert list((tmp_path / "phone").iterdir()) == []


def test_readers_never_see_half_a_file_and_writers_do_not_meet(tmp_path: Path) -> None:
    def publish() -> None:
        for version in range(30):
            ModelStore(tmp_path).put(bytes([version]) * 100_000, tier="phone", version=version)

    store, seen = ModelStore(tmp_path), 0
    with ThreadPoolExecutor(2) as writers:
        writing = [writers.submit(publish) for _ in range(2)]
        while not all(writer.done() for writer in writing):
            for stored in store.list():
                assert stored.path.read_bytes() == bytes([stored.version]) * 100_000
                seen += 1
    assert [writer.result() for writer in writing] == [None, None] and seen > 0
    assert len(store.list()) == 30 == len(list((tmp_path / "phone").iterdir()))


@pytest.mark.parametrize("what", ["file", "folder", "pipe"])
def test_a_link_or_a_pipe_in_the_store_is_no_bundle(what: str, tmp_path: Path) -> None:
    secret, tier = tmp_path / "secret", tmp_path / "store" / "phone"
    (secret / "inner").mkdir(parents=True)
    (secret / "0000000001.fpb").write_bytes(b"secret")
    store = ModelStore(tmp_path / "store")
    if what == "folder":
        tier.symlink_to(secret)
    else:
        tier.mkdir()
        path = tier / "0000000001.fpb"
        path.symlink_to(secret / "0000000001.fpb") if what == "file" else os.mkfifo(path)
    assert store.list() == []
    with pytest.raises(StoreError):
        store.get("phone", 1)
    with pytest.raises(OSError):
        open_bundle(tier / "0000000001.fpb")
    with pytest.raises(StoreError):
        store.put(b"one", tier="phone", version=1)
    assert (secret / "0000000001.fpb").read_bytes() == b"secret"


def test_a_bundle_that_is_swapped_for_a_link_is_not_opened(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.put(b"one", tier="phone", version=1)
    (stored,) = store.list()
    stored.path.unlink()
    stored.path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="it is a symbolic link"):
        open_bundle(stored.path)
