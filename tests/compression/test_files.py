"""Files that are whole or absent: a process that is killed while it writes leaves the old file."""

import os
import signal
import socket
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


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Paths that are no regular files: devices that never end, a pipe without a writer, a socket, a folder."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "link").symlink_to("/dev/zero")
        places = [Path("/dev/zero"), Path("/dev/tty"), *(tmp_path / name for name in ("pipe", "socket", "link"))]
        yield {**{path.name: path for path in places}, "folder": tmp_path}


@pytest.mark.parametrize("name", ["zero", "tty", "pipe", "socket", "link", "folder"])
def test_what_is_no_regular_file_is_not_read(name: str, odd: dict[str, Path]) -> None:
    with pytest.raises(OSError) as raised:
        files.read_regular(odd[name], 100)
    assert raised.value.strerror


@given(st.binary(max_size=300), st.integers(0, 300))
def test_a_file_is_read_up_to_its_bound(tmp_path_factory: pytest.TempPathFactory, data: bytes, most: int) -> None:
    path = tmp_path_factory.getbasetemp() / "bounded"
    path.write_bytes(data)
    if len(data) <= most:
        assert files.read_regular(path, most) == data
    else:
        with pytest.raises(OSError, match=f"larger than {most} bytes"):
            files.read_regular(path, most)


def test_a_file_that_says_it_has_no_size_is_bounded_too() -> None:
    assert files.read_regular("/proc/self/status", 1 << 20).startswith(b"Name:")
    with pytest.raises(OSError, match="larger than 10 bytes"):
        files.read_regular("/proc/self/status", 10)


def test_a_sparse_file_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="larger than"):
        files.read_regular(path, files.MOST_DATA)


def test_a_link_is_followed_only_where_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to("file")
    assert files.read_regular(tmp_path / "link", 10) == b"data"
    with pytest.raises(OSError, match="it is a symbolic link"):
        files.read_regular(tmp_path / "link", 10, follow=False)


def test_the_private_folder_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = files.private_folder()
    assert folder.is_dir() and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert files.private_folder().stat().st_mode & 0o777 == 0o700
    if os.getuid() == 0:
        os.chown(folder, 12345, 12345)
        with pytest.raises(OSError, match="it belongs to another user"):
            files.private_folder()
