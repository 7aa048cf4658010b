"""King James Bible, book by book, from the data file of Debian's package bible-kjv-text.

The file `bible.data` is as C. Chapin's Bible Retrieval System (1989) writes it: a header with big-endian numbers, then
the text in windows, each packed by itself with the LZW codes of Unix `compress` [1], so that a reader may begin at any.
A line of the text is a verse behind its reference, `Ge1:1 In the beginning ...`; the first line is a title.

[1] T. A. Welch, "A Technique for High-Performance Data Compression", IEEE Computer 17 (6), 1984.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from fedpress.simulations.tasks.registry import TaskError

DEBIAN = Path("/usr/lib/bible.data")
"""Where the package bible-kjv-text puts the file."""

MAGIC = b"EC02Compressed Data File\0"
COUNTS = 0x54
"""Where the header says how long an unpacked window is, and how many there are; their offsets and the end follow."""

VERSE = re.compile(r"(\d?[A-Za-z]+)\d+:\d+ (.+)")

CLEAR, FIRST_WIDTH, LAST_WIDTH = 256, 9, 16
"""Code that ends a window; bits of a code at first and at most."""


def books(path: Path = DEBIAN) -> dict[str, str]:
    """Return the text of each book, verses in a row, by the file's abbreviation of it (Ge, Exo, 1Sm).

    Raises:
        TaskError: As `verses`.
    """
    return {book: " ".join(texts) for book, texts in verses(path).items()}


def verses(path: Path = DEBIAN) -> dict[str, list[str]]:
    """Return the verses of each book, by the file's abbreviation of it, in the order of the Bible.

    Raises:
        TaskError: The file is absent, damaged, or not of this format.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise TaskError(
            f"the task's default text, the King James Bible, is not there, {path} does not exist. On Debian or"
            " Ubuntu: apt-get install bible-kjv-text. Elsewhere: name a folder of your own texts:"
            " --set task.data_dir=FOLDER"
        ) from None
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {error.strerror}") from None
    found: dict[str, list[str]] = {}
    for number, line in enumerate(unpack(data, path).decode("latin-1").splitlines()[1:], 2):
        verse = VERSE.fullmatch(line)
        if verse is None:
            raise TaskError(f"{path}: line {number} is {line[:40]!r}, expected a verse such as 'Ge1:1 In the'")
        found.setdefault(verse[1], []).append(verse[2])
    return found


def unpack(data: bytes, path: Path) -> bytes:
    """Return the text of a data file.

    Args:
        data: Content of the file.
        path: Its path, for errors.

    Raises:
        TaskError: The content is damaged, or not of this format.
    """
    if not data.startswith(MAGIC):
        raise TaskError(f"{path}: starts with {data[: len(MAGIC)]!r}, expected {MAGIC!r}; is it bible-kjv-text's file?")
    try:
        size, count = struct.unpack_from(">2I", data, COUNTS)
        offsets = struct.unpack_from(f">{count + 1}I", data, COUNTS + 8)
    except struct.error:
        raise TaskError(f"{path}: {len(data)} bytes do not hold its header; was the file cut short?") from None
    if offsets[-1] != len(data):
        raise TaskError(f"{path}: has {len(data)} bytes, its header says {offsets[-1]}; was the file cut short?")
    windows = []
    for number in range(count):
        window = unpack_window(data[offsets[number] : offsets[number + 1]])
        if window is None or len(window) > size or (number < count - 1 and len(window) < size):
            raise TaskError(f"{path}: window {number + 1} of {count} does not unpack to {size} bytes; is it damaged?")
        windows.append(window)
    return b"".join(windows)


def unpack_window(packed: bytes) -> bytes | None:
    """Return an unpacked window; None if it has a code that no packer writes."""
    known = [bytes([value]) for value in range(256)] + [b""]  # a string for each code; CLEAR has none
    unpacked, previous = [], b""
    width, position, began = FIRST_WIDTH, 0, 0  # the last two in bits
    while position + width <= 8 * len(packed):
        bits = int.from_bytes(packed[position >> 3 : (position >> 3) + 4], "little")
        code = (bits >> (position & 7)) & ((1 << width) - 1)
        position += width
        if code == CLEAR:
            break
        if code > len(known) or (code == len(known) and not previous):
            return None
        entry = known[code] if code < len(known) else previous + previous[:1]
        unpacked.append(entry)
        if previous and len(known) < 1 << LAST_WIDTH:
            known.append(previous + entry[:1])
        previous = entry
        if len(known) >= 1 << width and width < LAST_WIDTH:
            # Codes come in blocks of eight, `width` bytes; a block that is not full is padded before they grow.
            position = began = began + -(-(position - began) // (8 * width)) * 8 * width
            width += 1
    return b"".join(unpacked)
