"""Large arrays of a client's state: written as what has changed, and whole whenever the process is killed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedpress.client.state import parts
from fedpress.client.state.stores import DamagedState, FolderStore, Stored
from fedpress.compression import files

SIZE = parts.LARGE // 4 + 1000


def residual(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


def loaded(folder: Path) -> dict[str, NDArray[Any]]:
    found = FolderStore(folder, "home", 0).load()
    assert found is not None
    return dict(found.arrays)


def array_files(store: FolderStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.path.parent.iterdir() if path != store.path}


def test_only_what_has_changed_is_written(tmp_path: Path) -> None:
    store, held = FolderStore(tmp_path, "home", 0), np.arange(SIZE, dtype=np.int32)
    store.save(Stored({"replica": held, "residual": residual(0), "reply": np.ones(3, np.uint8)}, {"ticket": "1"}))
    first, small = array_files(store), store.path.stat().st_size
    assert len(first) == 2 and small < 1000
    for number in range(1, 4):  # few entries of one array, all of the other
        store = FolderStore(tmp_path, "home", 0)
        store.load()
        held = held.copy()
        held[number::1000] += 1
        store.save(Stored({"replica": held, "residual": residual(number)}, {"ticket": str(number)}))
        kept = array_files(store)
        assert len(kept) == 2 and len(first.keys() & kept.keys()) == 1  # the held model's stays
        assert small < store.path.stat().st_size < held.nbytes / 50
        found = loaded(tmp_path)
        np.testing.assert_array_equal(found["replica"], held)
        np.testing.assert_array_equal(found["residual"], residual(number))
    store.save(Stored({"replica": held, "residual": residual(3)}, {"ticket": "5"}))
    assert array_files(store) == kept  # nothing has changed
    store.save(Stored({"replica": held + 1, "residual": residual(3)}, {"ticket": "6"}))
    assert len(first.keys() & array_files(store).keys()) == 0
    np.testing.assert_array_equal(loaded(tmp_path)["replica"], held + 1)


def test_an_array_of_another_size_or_bit_pattern_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    store, zeros = FolderStore(tmp_path, "home", 0), np.zeros(SIZE, np.float32)
    store.save(Stored({"residual": zeros}, {}))
    store.save(Stored({"residual": zeros[:-10]}, {}))
    assert loaded(tmp_path)["residual"].shape == (SIZE - 10,)
    negative = zeros.copy()
    negative[5], negative[7] = -0.0, np.nan
    store.save(Stored({"residual": negative}, {}))
    assert loaded(tmp_path)["residual"].tobytes() == negative.tobytes()


def test_a_kill_at_any_write_leaves_the_state_before_or_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"replica": np.arange(SIZE, dtype=np.int32), "residual": residual(1)}
    after = {"replica": np.arange(SIZE, dtype=np.int32)[::-1].copy(), "residual": residual(2)}
    FolderStore(tmp_path, "home", 0).save(Stored(before, {"ticket": "1"}))
    write = files.write_atomically

    class Killed(BaseException):
        pass

    for kill in range(6):
        left = [kill]

        def counted(original: Any, left: list[int] = left) -> Any:
            def call(*arguments: Any, **named: Any) -> Any:
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return original(*arguments, **named)

            return call

        store = FolderStore(tmp_path, "home", 0)
        store.load()
        monkeypatch.setattr(files, "write_atomically", counted(write))
        try:
            store.save(Stored(after, {"ticket": "2"}))
        except Killed:
            pass
        monkeypatch.undo()
        found, expected = loaded(tmp_path), before if kill < 3 else after  # two arrays, then the state that names them
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
    store = FolderStore(tmp_path, "home", 0)
    store.load()
    store.save(Stored(after, {"ticket": "3"}))
    assert len(array_files(store)) == 2  # what killed writes have left is gone


@pytest.mark.parametrize("damage", ["missing", "cut", "changed", "another"])
def test_damage_to_the_file_of_an_array_is_found(tmp_path: Path, damage: str) -> None:
    store = FolderStore(tmp_path, "home", 0)
    store.save(Stored({"residual": residual(1)}, {}))
    (path,) = (path for path in store.path.parent.iterdir() if path != store.path)
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "changed":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        other = FolderStore(tmp_path, "other", 0)
        other.save(Stored({"residual": residual(2)}, {}))
        (foreign,) = (path for path in other.path.parent.iterdir() if path != other.path)
        path.write_bytes(foreign.read_bytes())
    with pytest.raises(DamagedState, match="'residual'"):
        store.load()
    assert store.load() is None
