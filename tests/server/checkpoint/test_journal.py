"""Journals: what is read is a beginning of what was appended, whatever a kill or a bad disk has made of the file."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedpress.compression import files
from fedpress.server.checkpoint.journal import Journal
from fedpress.server.checkpoint.state import DamagedCheckpoint, Packed

BASE = "of the checkpoint"
ENTRIES = 4


class Leaf(NamedTuple):
    """What an entry has."""

    number: int
    payload: bytes
    array: NDArray[Any]


def written(path: Path, numbers: range = range(ENTRIES), after: str = BASE) -> list[int]:
    """Append entries, and return the length of the file after each."""
    ends = []
    for number in numbers:
        packed = Packed({"leaf": Leaf(number, bytes([number]) * 50, np.arange(number))}, after)
        ends.append(Journal(path, after).append(packed))
        after = packed.checksum
    return ends


def numbers(path: Path, base: str = BASE) -> list[int]:
    leaves = [entry.saved.part("leaf", Leaf) for entry in Journal(path, base).entries()]
    assert all(leaf.payload == bytes([leaf.number]) * 50 and len(leaf.array) == leaf.number for leaf in leaves)
    return [leaf.number for leaf in leaves]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, list[int]]:
    path = tmp_path_factory.mktemp("journal") / "round.journal"
    assert numbers(path) == []
    ends = written(path)
    assert numbers(path) == list(range(ENTRIES)) and ends[-1] == path.stat().st_size
    return path, path.read_bytes(), ends


@given(st.data())
def test_an_entry_that_a_kill_has_torn_is_none(whole: tuple[Path, bytes, list[int]], data: st.DataObject) -> None:
    path, good, ends = whole
    near = st.integers(-13, 13).flatmap(lambda away: st.sampled_from(ends).map(lambda end: end + away))
    length = data.draw((near | st.integers(0, len(good))).filter(lambda length: 0 <= length <= len(good)))
    path.write_bytes(good[:length])
    kept = [end for end in ends if end <= length]
    assert numbers(path) == list(range(len(kept)))
    Journal(path, BASE).cut(max(kept, default=0), keep=False)
    assert (path.read_bytes() if path.exists() else b"") == good[: max(kept, default=0)]
    assert not list(path.parent.glob(f"*{files.DAMAGED}*"))


@given(st.data())
def test_any_other_damage_is_found_and_what_stands_before_it_is_read(
    whole: tuple[Path, bytes, list[int]], data: st.DataObject
) -> None:
    path, good, ends = whole
    position, bit = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(good[:position] + bytes([good[position] ^ 1 << bit]) + good[position + 1 :])
    read = []
    with pytest.raises(DamagedCheckpoint):
        for entry in Journal(path, BASE).entries():
            read.append(entry.saved.part("leaf", Leaf).number)
    intact = [end for end in ends if end <= position]
    assert read == list(range(len(intact)))
    Journal(path, BASE).cut(max(intact, default=0), keep=True)
    assert numbers(path) == read
    (aside,) = path.parent.glob(f"*{files.DAMAGED}")
    assert aside.stat().st_size == len(good)
    aside.unlink()


def test_entries_after_another_checkpoint_are_none(tmp_path: Path) -> None:
    """A kill between a checkpoint and the removal of the journal that it has made needless."""
    path = tmp_path / "round.journal"
    written(path)
    assert numbers(path, "of another one") == []
    Journal(path, "of another one").cut(0, keep=False)
    assert not path.exists()


def test_entries_out_of_their_order_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "round.journal"
    ends = written(path)
    data = path.read_bytes()
    path.write_bytes(data[: ends[0]] + data[ends[1] :])
    with pytest.raises(DamagedCheckpoint, match="does not follow the one before it"):
        numbers(path)
