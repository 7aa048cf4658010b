"""The folder of checkpoints: the newest whole one is read, damaged ones are moved aside."""

import logging
import resource
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from fedpress.server.checkpoint import state as states
from fedpress.server.checkpoint.checkpoint_folder import SMALL, CheckpointFolder
from fedpress.server.checkpoint.state import CheckpointError


class Leaf(NamedTuple):
    """What a part of a part keeps."""

    array: NDArray[Any]
    text: str
    data: bytes


def state() -> dict[str, Any]:
    return {"part": Leaf(np.arange(6.0).reshape(2, 3), "ü", b"data"), "other": {"x": 0.1}}


@pytest.mark.parametrize(("change", "way"), [(1, "update fedpress"), (-1, "finish that run with the fedpress that")])
def test_another_format_is_named_and_nothing_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: int, way: str
) -> None:
    folder, own = CheckpointFolder(tmp_path), states.VERSION
    with monkeypatch.context() as patch:
        patch.setattr(states, "VERSION", own + change)
        folder.save(1, state())
    with pytest.raises(CheckpointError, match=f"format version {own + change}, this fedpress reads {own}; {way}"):
        folder.newest()
    assert folder.rounds() == [1]


def test_the_last_few_are_kept_and_leftovers_removed(tmp_path: Path) -> None:
    (tmp_path / ".abc.part").write_bytes(b"half")
    folder = CheckpointFolder(tmp_path)
    assert folder.newest() is None
    for number in range(1, 8):
        folder.save(number, state())
    assert folder.rounds() == [5, 6, 7]
    assert len(list(tmp_path.iterdir())) == 3
    found = folder.newest()
    assert found is not None and (found.round, found.skipped) == (7, 0)
    with pytest.raises(ValueError, match="keep is 0"):
        CheckpointFolder(tmp_path, keep=0)


def test_a_damaged_one_is_moved_aside_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path)
    for number in (1, 2):
        folder.save(number, state())
    newest = tmp_path / "round-00000002.safetensors"
    torn = newest.read_bytes()[:-5]
    newest.write_bytes(torn)
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    try:
        found = folder.newest()
    finally:
        logger.removeHandler(caplog.handler)
    assert found is not None and (found.round, found.skipped) == (1, 1)
    assert "cannot be used: it is torn" in caplog.text and "round-00000002.safetensors.damaged" in caplog.text
    assert (tmp_path / "round-00000002.safetensors.damaged").read_bytes() == torn
    (tmp_path / "round-00000001.safetensors").write_bytes(b"hello")
    for _ in range(2):  # never silently from the beginning
        with pytest.raises(CheckpointError, match="all are damaged"):
            folder.newest()


def test_a_disk_that_is_full_leaves_the_one_before(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, state())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match="the one before it is untouched"):
            folder.save(2, {"part": Leaf(np.zeros(9000), "", b"")})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = folder.newest()
    assert found is not None and found.round == 1
    assert len(list(tmp_path.iterdir())) == 1


def filled(path: Path, budget: float, size: int, rounds: int, entry: int = 10) -> CheckpointFolder:
    """Return a folder in which some rounds were saved, of a state and entries of so many bytes."""
    folder = CheckpointFolder(path, budget=budget)
    for number in range(1, rounds + 1):
        folder.save(
            number, {"part": Leaf(np.full(size, number, np.uint8), "", b"")}, {"part": Leaf(np.zeros(entry), "", b"")}
        )
    return folder


def test_a_budget_says_which_rounds_have_a_checkpoint(tmp_path: Path) -> None:
    # Everywhere: the first; a small one costs no more than an entry; 1: all of them.
    assert filled(tmp_path / "small", 0.05, 1000, 5).rounds() == [3, 4, 5]
    assert filled(tmp_path / "all", 1, SMALL + 1, 3).rounds() == [1, 2, 3]
    # A large one takes more than a millionth of the time, but is there as soon as the journal would be larger than it.
    large = filled(tmp_path / "large", 1e-6, SMALL + 1, 4)
    assert large.rounds() == [1] and len(list(large.newest().entries())) == 3  # type: ignore[union-attr]
    assert filled(tmp_path / "long", 0, 10_000, 60, entry=100).rounds()[0] > 1
    # Nothing is written twice: a round that cannot be taken again has a checkpoint, and no entry before it counts.
    large.save(5, state(), None)
    found = large.newest()
    assert found is not None and found.round == 5 and not list(found.entries())
    with pytest.raises(ValueError, match="budget is 2, expected a share of the time from 0 to 1"):
        CheckpointFolder(tmp_path, budget=2)


def test_a_checkpoint_of_the_same_round_replaces_the_journal_too(tmp_path: Path) -> None:
    folder = filled(tmp_path, 0, 100_000, 3)
    folder.save(1, state(), None)
    found = folder.newest()
    assert found is not None and found.round == 1 and not list(found.entries())


def test_a_damaged_entry_is_cut_off_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, 0, 100_000, 4)
    (path,) = tmp_path.glob("*.journal")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    folder = CheckpointFolder(tmp_path, budget=0)
    try:
        found = folder.newest()
    finally:
        logger.removeHandler(caplog.handler)
    assert found is not None and found.skipped == 1 and len(list(found.entries())) == 1
    assert "round-00000001.journal cannot be used from byte" in caplog.text
    assert (tmp_path / "round-00000001.journal.damaged").read_bytes() == data
    folder.save(3, state(), {"part": state()["part"]})
    found = folder.newest()
    assert found is not None and len(list(found.entries())) == 2


def test_a_journal_that_does_not_fit_the_disk_leaves_what_was_there(tmp_path: Path) -> None:
    folder = filled(tmp_path, 0, 100_000, 3)
    (path,) = tmp_path.glob("*.journal")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 300, hard))
    try:
        with pytest.raises(CheckpointError, match="the one before it is untouched"):
            folder.save(4, state(), {"part": Leaf(np.zeros(1000), "", b"")})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
