"""The Bible's data file: the real one where it is installed, and packed ones, whole and damaged, everywhere."""

from __future__ import annotations

import hashlib
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.simulations.tasks import king_james
from fedpress.simulations.tasks.registry import TaskError

real = pytest.mark.skipif(not king_james.DEBIAN.is_file(), reason="needs Debian's package bible-kjv-text")

TEXT = b"A title.\nGe1:1 In the beginning.\nGe1:2 And the earth.\n1Sm1:1 Now there was a man.\n1Sm12:3 Behold.\n"


def pack_window(text: bytes) -> bytes:
    """LZW as `compress` writes it, with the code CLEAR at the end."""
    known = {bytes([value]): value for value in range(256)}
    codes, prefix = [], b""
    for value in text:
        longer = prefix + bytes([value])
        if longer in known:
            prefix = longer
            continue
        codes.append(known[prefix])
        known[longer] = len(known) + 1  # 256 is CLEAR
        prefix = bytes([value])
    codes += [known[prefix], king_james.CLEAR] if prefix else [king_james.CLEAR]
    packed, block, width = bytearray(), [], 9
    for number, code in enumerate(codes, 1):
        block.append(code)
        grows = 256 + number >= 1 << width  # what the reader knows after this code
        if len(block) == 8 or grows or number == len(codes):
            packed += sum(code << (width * place) for place, code in enumerate(block)).to_bytes(width, "little")
            block = []
        width += grows
    return bytes(packed)


def pack(text: bytes, size: int) -> bytes:
    """A data file with windows of `size` bytes."""
    windows = [pack_window(text[start : start + size]) for start in range(0, len(text), size)]
    offsets = [king_james.COUNTS + 8 + 4 * (len(windows) + 1)]
    for window in windows:
        offsets.append(offsets[-1] + len(window))
    header = king_james.MAGIC.ljust(king_james.COUNTS, b"\0") + struct.pack(
        f">{2 + len(offsets)}I", size, len(windows), *offsets
    )
    return header + b"".join(windows)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "bible.data"
    path.write_bytes(pack(TEXT, 40))
    return path


def test_books_are_verses_in_a_row(file):
    assert king_james.books(file) == {
        "Ge": "In the beginning. And the earth.",
        "1Sm": "Now there was a man. Behold.",
    }


@given(st.binary(max_size=300) | st.text("ab", max_size=3000).map(str.encode) | st.integers(0, 6000).map(bytes))
def test_a_window_unpacks_to_what_was_packed(text):
    assert king_james.unpack_window(pack_window(text)) == text


@given(st.binary(max_size=100))
def test_any_bytes_unpack_or_are_refused(packed):
    assert isinstance(king_james.unpack_window(packed), bytes | None)


@real
def test_the_real_file_has_66_books():
    books = king_james.books()
    assert len(books) == 66
    assert list(books)[:2] == ["Ge", "Exo"] and list(books)[-1] == "Rev"
    assert books["Ge"].startswith("In the beginning God created the heaven and the earth. And the earth was")
    assert books["Rev"].endswith("The grace of our Lord Jesus Christ be with you all. Amen.")


@real
def test_the_real_file_unpacks_as_gzip_unpacks_it():
    data = king_james.DEBIAN.read_bytes()
    start = (
        struct.unpack_from(">I", data, king_james.COUNTS + 8)[0] - 3
    )  # its windows in a row are one file of `compress`
    expected = subprocess.run(["gzip", "-dc"], input=data[start:], capture_output=True, check=True).stdout
    unpacked = king_james.unpack(data, king_james.DEBIAN)
    assert hashlib.sha256(unpacked).hexdigest() == hashlib.sha256(expected).hexdigest()


def test_an_absent_file_says_how_to_get_it(tmp_path):
    with pytest.raises(TaskError, match=r"does not exist.*apt-get install bible-kjv-text.*task\.data_dir=FOLDER"):
        king_james.books(tmp_path / "bible.data")


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data: b"PK" + data[2:], "is it bible-kjv-text's file"),
        (lambda data: data[:90], "90 bytes do not hold its header; was the file cut short"),
        (lambda data: data[:-1], r"its header says \d+; was the file cut short"),
        (
            lambda data: data[: king_james.COUNTS] + struct.pack(">I", 39) + data[king_james.COUNTS + 4 :],
            "window 1 of 3 .* 39 bytes",
        ),
        (
            lambda data: data[: king_james.COUNTS] + struct.pack(">I", 41) + data[king_james.COUNTS + 4 :],
            "window 1 of 3 .* 41 bytes",
        ),
        (lambda data: data[:108] + b"\xff\xff" + data[110:], "window 1 of 3 does not unpack"),
        (lambda _: pack(b"Title\nGe1:1 In the beginning.\nChapter 2\n", 64), "line 3 is 'Chapter 2', expected a verse"),
    ],
)
def test_a_damaged_file_is_refused_with_its_fault(file, damage, text):
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(TaskError, match=text) as caught:
        king_james.books(file)
    assert str(file) in str(caught.value)
