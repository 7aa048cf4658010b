"""The folder of checkpoints: the newest whole one is read, damaged ones are moved aside."""

import logging
import resource
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from fedpress.server.checkpoint import state as states
from fedpress.server.checkpoint.checkpoint_folder import CheckpointFolder
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
