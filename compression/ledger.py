"""Ledger of communication: bytes by round, node, direction and kind, counted from the messages themselves.

Law: the ledger's total == the serialized size of all messages. Senders and receivers record `len(serialized)`, never a
formula.
"""

import csv
import io
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import files

Direction = Literal["up", "down"]
DIRECTIONS: tuple[str, ...] = get_args(Direction)

KINDS = ("model", "update", "buffers", "metrics", "control", "evaluate", "bundle", "mask", "vote", "base")
"""Purposes of bytes: a whole model; a payload; buffers; metrics; tickets, versions and the frame of a message;
evaluation on clients; the download of a student; the mask of a sparse model; a client's vote on that mask; a pretrained
base that a client has no copy of."""

ARRAYS = ("model", "update", "buffers", "mask", "vote")
"""Kinds that stand for the arrays of a model in messages to train and replies; the others are frame, metrics,
evaluation and students."""


class Entry(NamedTuple):
    """One line of the ledger; `bytes` is a serialized size."""

    round: int
    node: int
    direction: Direction
    kind: str
    bytes: int


TYPES = "IQBBQ"
"""Type codes of the columns, as in `array`: unsigned, of 4, 8, 1, 1 and 8 bytes."""


class Ledger:
    """The bytes of a run, in the order in which they were recorded.

    >>> ledger = Ledger()
    >>> ledger.record(1, 7, "up", "update", 1200)
    >>> ledger.record(1, 7, "down", "model", 4000)
    >>> ledger.total(), ledger.total(direction="up"), ledger.total(kind="model", round=2)
    (5200, 1200, 0)
    """

    def __init__(self) -> None:
        # A column each, 22 bytes a row: a run of thousands of rounds keeps all its rows.
        self._columns = tuple(array(code) for code in TYPES)

    @property
    def rows(self) -> list[Entry]:
        """The rows, built from the columns at each access."""
        return [
            Entry(round, node, DIRECTIONS[direction], KINDS[kind], size)
            for round, node, direction, kind, size in zip(*self._columns, strict=True)
        ]

    def record(self, round: int, node: int, direction: Direction, kind: str, size: int) -> None:
        """Append a row.

        Args:
            round: Round of the message, below 2^32.
            node: Id of the client's node, below 2^64.
            direction: "up" or "down".
            kind: Purpose of the bytes, one of `KINDS`.
            size: Serialized size in bytes.

        Raises:
            ValueError: An unknown direction or kind, a negative size, or a number that its column cannot hold.
        """
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r} is not one of {', '.join(DIRECTIONS)}")
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        if size < 0:
            raise ValueError(f"size {size} is negative; a size is the length of serialized bytes")
        if not (0 <= round < 1 << 32 and 0 <= node < 1 << 64 and size < 1 << 64):
            raise ValueError(f"round {round}, node {node} or size {size} is out of range; ids have 64 bits, rounds 32")
        entry = (round, node, DIRECTIONS.index(direction), KINDS.index(kind), size)
        for column, value in zip(self._columns, entry, strict=True):
            column.append(value)

    def total(self, direction: Direction | None = None, kind: str | None = None, round: int | None = None) -> int:
        """Return the sum of the bytes of some rows.

        Args:
            direction: Rows of this direction only; None for both.
            kind: Rows of this kind only; None for all.
            round: Rows of this round only; None for all.
        """
        columns = self._views()
        counts = np.ones(len(columns["bytes"]), bool)
        if direction is not None:
            counts &= columns["direction"] == DIRECTIONS.index(direction)
        if kind is not None:
            counts &= columns["kind"] == KINDS.index(kind)
        if round is not None:
            counts &= columns["round"] == round
        return int(columns["bytes"][counts].sum())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the columns as arrays, shape (rows,); directions and kinds as indices of `DIRECTIONS` and `KINDS`."""
        return {name: view.copy() for name, view in self._views().items()}

    def replace(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Replace all rows by those that `arrays` returned."""
        self._columns = tuple(array(code) for code in TYPES)
        columns = (arrays[name].tolist() for name in Entry._fields)
        for round, node, direction, kind, size in zip(*columns, strict=True):
            self.record(round, node, DIRECTIONS[direction], KINDS[kind], size)

    @classmethod
    def merged(cls, ledgers: Iterable["Ledger"]) -> "Ledger":
        """Return one ledger of the rows of several, sorted by round, then by the order of the ledgers."""
        ledger = cls()
        for entry in sorted((entry for part in ledgers for entry in part.rows), key=lambda entry: entry.round):
            ledger.record(*entry)
        return ledger

    def _views(self) -> dict[str, NDArray[Any]]:
        """Return the columns without copying them; a row can be added only once the views are gone."""
        return {
            name: np.frombuffer(column, column.typecode)
            for name, column in zip(Entry._fields, self._columns, strict=True)
        }

    def save(self, path: Path) -> None:
        """Write the ledger as CSV with the header `round,node,direction,kind,bytes`; readers see all of it or none."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Entry._fields)
        writer.writerows(self.rows)
        files.write_atomically(path, text.getvalue().encode())

    @classmethod
    def load(cls, path: Path) -> "Ledger":
        """Read a ledger that `save` wrote.

        Raises:
            ValueError: The file is not a ledger, or a line of it is not an entry.
        """
        ledger = cls()
        with io.TextIOWrapper(files.open_regular(path), encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            try:
                header = next(reader, [])
            except csv.Error as error:
                raise ValueError(f"{path} is not a ledger: {error}") from error
            if tuple(header) != Entry._fields:
                raise ValueError(f"{path} does not begin with {','.join(Entry._fields)!r}, so it is not a ledger")
            number = 1
            try:
                for number, (round, node, direction, kind, size) in enumerate(reader, start=2):  # noqa: B007
                    ledger.record(int(round), int(node), direction, kind, int(size))  # type: ignore[arg-type]
            except (ValueError, OverflowError, csv.Error) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
        return ledger


def format_bytes(size: float) -> str:
    """Return a size in decimal units with three significant digits: `1.23 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    digits = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {unit}"
