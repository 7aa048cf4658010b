"""Bytes by round, node, direction and kind, counted from the messages themselves.

Law: what the ledger counts == the serialised size of what was put into the messages. Whoever sends or receives
records `len(serialised)`, never a formula.
"""

import csv
import io
import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import files

Direction = Literal["up", "down"]
DIRECTIONS: tuple[str, ...] = get_args(Direction)

KINDS = ("model", "update", "buffers", "metrics", "control", "evaluate", "bundle")
"""What bytes are for: a whole model; a payload; buffers; metrics; tickets, versions and the frame of a message;
evaluation on clients; the download of a student."""


class Entry(NamedTuple):
    """One line of the ledger; `bytes` is a serialised size."""

    round: int
    node: int
    direction: Direction
    kind: str
    bytes: int


class Ledger:
    """The bytes of a run, in the order in which they were recorded.

    >>> ledger = Ledger()
    >>> ledger.record(1, 7, "up", "update", 1200)
    >>> ledger.record(1, 7, "down", "model", 4000)
    >>> ledger.total(), ledger.total(direction="up"), ledger.total(kind="model", round=2)
    (5200, 1200, 0)
    """

    def __init__(self) -> None:
        self.rows: list[Entry] = []
        # Running sums under every combination of the three keys, None standing for all: a total is one look-up,
        # also after thousands of rounds.
        self._sums: Counter[tuple[str | None, str | None, int | None]] = Counter()

    def record(self, round: int, node: int, direction: Direction, kind: str, size: int) -> None:
        """Add `size` bytes.

        Raises:
            ValueError: An unknown direction or kind, or a negative size.
        """
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r} is not one of {', '.join(DIRECTIONS)}")
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        if size < 0:
            raise ValueError(f"size {size} is negative; a size is the length of serialised bytes")
        self.rows.append(Entry(round, node, direction, kind, size))
        for key in itertools.product((direction, None), (kind, None), (round, None)):
            self._sums[key] += size

    def total(self, direction: Direction | None = None, kind: str | None = None, round: int | None = None) -> int:
        """Return the bytes of one direction, kind and round; None stands for all."""
        return self._sums[direction, kind, round]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the rows as arrays, one for each column; directions and kinds by their number."""
        rounds, nodes, directions, kinds, sizes = zip(*self.rows, strict=True) if self.rows else ((),) * 5
        return {
            "round": np.array(rounds, np.uint32),
            "node": np.array(nodes, np.uint64),
            "direction": np.array([DIRECTIONS.index(direction) for direction in directions], np.uint8),
            "kind": np.array([KINDS.index(kind) for kind in kinds], np.uint8),
            "bytes": np.array(sizes, np.uint64),
        }

    def replace(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the rows that `arrays` returned, in place of those here."""
        self.rows.clear()
        self._sums.clear()
        columns = (arrays[name].tolist() for name in Entry._fields)
        for round, node, direction, kind, size in zip(*columns, strict=True):
            self.record(round, node, DIRECTIONS[direction], KINDS[kind], size)

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
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if tuple(header) != Entry._fields:
                raise ValueError(f"{path} does not begin with {','.join(Entry._fields)!r}, so it is not a ledger")
            for number, row in enumerate(reader, start=2):
                try:
                    round, node, direction, kind, size = row
                    ledger.record(int(round), int(node), direction, kind, int(size))  # type: ignore[arg-type]
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
        return ledger
