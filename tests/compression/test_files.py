"""Files that are whole or absent: a process that is killed while it writes leaves the old file."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpress.compression import files


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(st.binary(max_size=20)))
def test_pieces_are_written_one_after_the_other(tmp_path: Path, pieces: list[bytes]) -> None:
    path = tmp_path / "data"
    files.write_atomically(path, iter(pieces))
    assert path.read_bytes() == b"".join(pieces)
    files.write_atomically(path, b"other")
    assert path.read_bytes() == b"other" and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"new"
        raise RuntimeError("the source failed")

    path = tmp_path / "data"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="the source failed"):
        files.write_atomically(path, broken())
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError):
        files.write_atomically(tmp_path / "absent" / "data", b"new")


def test_what_is_not_renamed_is_removed(tmp_path: Path) -> None:
    with files.flushed(b"data", tmp_path) as temporary:
        assert temporary.read_bytes() == b"data" and temporary.parent == tmp_path
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_the_old_file_and_leftovers_that_can_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"old")
    code = (
        "import sys, time, pathlib; from fedpress.compression import files\n"
        "def pieces():\n"
        "    yield b'new'\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
        "files.write_atomically(pathlib.Path(sys.argv[1]), pieces())"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".hidden").touch()
    files.remove_leftovers(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".hidden", "data"]


def test_damaged_files_are_moved_aside_under_names_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "data"
    for number in range(3):
        path.write_bytes(bytes([number]))
        assert files.move_aside(path).read_bytes() == bytes([number])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data.damaged", "data.damaged-2", "data.damaged-3"]
    with pytest.raises(OSError):
        files.move_aside(path)
