"""Bases that a device was sent: whole and of their hash, whatever happened on the way."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.client.state.bases import Bases
from fedpress.compression import safetensors_files
from fedpress.compression.errors import BaseError
from fedpress.compression.messages.base_parts import BaseSource


def made(folder: Path, *sizes: int) -> BaseSource:
    folder.mkdir()
    for number, size in enumerate(sizes):
        (folder / f"{number}.safetensors").write_bytes(bytes((7 * number + i) % 256 for i in range(size)))
    return BaseSource(folder, 50)


def content(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


def fetched(store: Bases, base: BaseSource, limit: int = 99) -> Iterator[int]:
    """Ask for part after part until the base is whole; yield the length before each."""
    for _ in range(limit):
        length = store.length(base.sha256)
        yield length
        if store.add(base.part(length), base.sha256):
            return
    raise AssertionError("the base does not become whole")


@given(st.lists(st.integers(1, 180), min_size=1, max_size=3), st.lists(st.integers(0, 600), max_size=8))
def test_parts_that_come_twice_or_in_any_order_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], offsets: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("bases")
    base, store = made(folder / "files", *sizes), Bases(folder / "store")
    for offset in offsets:
        store.add(base.part(offset), base.sha256)
    for _ in fetched(store, base):
        pass
    path = store.find(base.sha256)
    assert path is not None and content(path) == content(folder / "files")
    assert safetensors_files.sha256(path) == base.sha256
    assert [entry.name for entry in (folder / "store").iterdir() if not entry.name.endswith(".lock")] == [base.sha256]
    assert store.add(base.part(0), base.sha256)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", range(1, 40))
def test_a_kill_at_any_write_costs_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    base, count = made(tmp_path / "files", 120, 90), 0

    def killed(function: Any) -> Any:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == call:
                raise Killed
            result = function(*arguments, **named)
            count += 1
            if count == call:
                raise Killed
            return result

        return wrapped

    store, reached = Bases(tmp_path / "store"), 0
    with monkeypatch.context() as patched:
        for module, name in ((os, "fsync"), (os, "replace"), (shutil, "rmtree"), (Path, "mkdir")):
            patched.setattr(module, name, killed(getattr(module, name)))
        try:
            for length in fetched(store, base):
                reached = length
        except Killed:
            pass
    store = Bases(tmp_path / "store")
    if store.find(base.sha256) is None:
        assert store.length(base.sha256) >= reached
        for _ in fetched(store, base):
            pass
    path = store.find(base.sha256)
    assert path is not None and content(path) == content(tmp_path / "files")


def test_what_a_disk_has_damaged_is_asked_for_again_and_no_more(tmp_path: Path) -> None:
    base, store = made(tmp_path / "files", 500), Bases(tmp_path / "store")
    seen = fetched(store, base)
    for length in seen:
        if length == 350:
            part = next((tmp_path / "store").glob("*.part"))
            data = bytearray(part.read_bytes())
            data[170] ^= 1
            part.write_bytes(data)
            break
    lengths = list(fetched(store, base))
    assert lengths == [350, 400, 450, 150, 200, 250, 300, 350, 400, 450]
    assert content(store.find(base.sha256) or Path("none")) == content(tmp_path / "files")


def test_a_part_that_was_torn_by_a_kill_is_not_taken_for_one(tmp_path: Path) -> None:
    base, store = made(tmp_path / "files", 120), Bases(tmp_path / "store")
    store.add(base.part(0), base.sha256)
    part = next((tmp_path / "store").glob("*.part"))
    part.write_bytes(part.read_bytes() + b"half")
    assert list(fetched(store, base)) == [50, 100]
    assert content(store.find(base.sha256) or Path("none")) == content(tmp_path / "files")


def test_another_base_no_hash_or_no_room_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = made(tmp_path / "files", 100), made(tmp_path / "other", 99)
    store = Bases(tmp_path / "store")
    with pytest.raises(BaseError, match=f"sends the base of SHA-256 {other.sha256}, expected {base.sha256}"):
        store.add(other.part(0), base.sha256)
    with pytest.raises(BaseError, match=r"'../../etc' is no SHA-256"):
        store.find("../../etc")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 50, 50))
        with pytest.raises(BaseError, match=r"takes 200 more bytes, and .* has room for 50"):
            store.add(base.part(0), base.sha256)
    (tmp_path / "store").rename(tmp_path / "moved")
    (tmp_path / "store").write_bytes(b"a file")
    with pytest.raises(BaseError, match="cannot keep a part of it in"):
        store.add(base.part(0), base.sha256)


def test_a_base_that_is_damaged_later_is_asked_for_again(tmp_path: Path) -> None:
    base, store = made(tmp_path / "files", 100), Bases(tmp_path / "store")
    list(fetched(store, base))
    store.discard(base.sha256)
    assert store.find(base.sha256) is None and store.length(base.sha256) == 0


def test_the_folder_is_that_of_the_configuration_or_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = made(tmp_path / "files", 100)
    for config, folder in (
        ({}, tmp_path / "cache" / "fedpress" / "bases"),
        ({"base-folder": tmp_path / "x"}, tmp_path / "x"),
    ):
        store = Bases.of(config)
        assert not folder.exists()
        list(fetched(store, base))
        assert store.find(base.sha256) == folder / base.sha256
