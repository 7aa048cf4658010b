"""Bandwidth traces: a CSV file with the rates of each client's link over virtual time.

    client,seconds,up_mbit,down_mbit,latency
    *,0,2.0,10.0,0.05
    *,60,0.2,1.0,0.3
    7,0,0.5,0.5,0.1

A row is valid from its time until that of the client's next row; the last row lasts as long as the one before it, and
then the trace repeats. Times count from a client's first row. `*` is every client without rows of its own. The column
`latency` is optional. `docs/concepts/network.md` says more.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import files, suggest
from fedpress.compression.errors import FedpressError

Floats = NDArray[np.float64]

COLUMNS = ("client", "seconds", "up_mbit", "down_mbit")
OPTIONAL = ("latency",)
ANYBODY = "*"


class TraceError(FedpressError, ValueError):
    """Unusable trace; the text names the file, and the line if the fault is in one."""


class Course(NamedTuple):
    """Link of one client over time; all arrays have shape (rows,)."""

    begins: Floats  # seconds from the first row, rising
    durations: Floats  # seconds; their sum is the period
    up_mbit: Floats
    down_mbit: Floats
    latency: Floats | None  # seconds

    @property
    def period(self) -> float:
        """Seconds after which the trace repeats."""
        return float(self.begins[-1] + self.durations[-1])

    def row(self, time: float) -> int:
        """Return the index of the row that is valid at a time, in seconds of the virtual clock."""
        return int(np.searchsorted(self.begins, time % self.period, side="right")) - 1

    def seconds(self, start: float, megabits: float, rates: Floats) -> float:
        """Return the seconds of a transfer that begins at `start`: until the integral over `rates` is `megabits`.

        Args:
            start: Time of the virtual clock, in seconds.
            megabits: Size of the transfer, in 10^6 bits.
            rates: Mbit/s of each row, shape (rows,); not all zero.
        """
        if megabits <= 0:
            return 0.0
        if len(rates) == 1:
            return megabits / float(rates[0])
        sent = np.concatenate([[0.0], np.cumsum(rates * self.durations)])  # by the end of each row, from the first on
        row, place = self.row(start), start % self.period
        goal = sent[row] + (place - self.begins[row]) * rates[row] + megabits
        periods, rest = divmod(float(goal), float(sent[-1]))
        if rest == 0:  # done with the last megabit of a period, and not only in the next one
            periods, rest = periods - 1, float(sent[-1])
        last = int(np.searchsorted(sent, rest, side="left")) - 1
        end = self.begins[last] + (rest - sent[last]) / rates[last]
        return max(0.0, float(periods * self.period + end - place))


class Trace(NamedTuple):
    """Trace of a file: a course for each client; `ANYBODY` stands for clients without one."""

    path: Path
    courses: Mapping[str, Course]

    def of(self, client: int) -> Course:
        """Return the course of a client, by its index from 0.

        Raises:
            TraceError: The client has no rows, and there are none for `*`.
        """
        course = self.courses.get(str(client)) or self.courses.get(ANYBODY)
        if course is None:
            raise TraceError(
                f"network.trace: {self.path} has no rows for client {client}; add some, or rows for {ANYBODY}, which"
                " stands for every client without rows of its own (clients count from 0)"
            )
        return course


def load(path: Path | str) -> Trace:
    """Read a trace.

    Raises:
        TraceError: The file cannot be read, or does not hold a trace; the line is named.
    """
    path = Path(path)
    try:
        text = files.read_regular(path, files.MOST_DATA).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise TraceError(f"network.trace: cannot read {path}: {reason}") from None
    reader = csv.reader(text.splitlines())
    header = [name.strip() for name in next(reader, [])]
    _check_header(path, header)
    rows: dict[str, list[list[float]]] = {}
    for fields in reader:
        if not any(field.strip() for field in fields):
            continue
        where = f"network.trace: {path}, line {reader.line_num}"
        if len(fields) != len(header):
            raise TraceError(f"{where}: {len(fields)} values, expected {len(header)}: {','.join(header)}")
        given = dict(zip(header, (field.strip() for field in fields), strict=True))
        client = _client(where, given.pop("client"))
        numbers = {name: _number(where, name, value) for name, value in given.items()}
        earlier = rows.setdefault(client, [])
        if earlier and numbers["seconds"] <= earlier[-1][0]:
            raise TraceError(
                f"{where}: seconds {numbers['seconds']:g} after {earlier[-1][0]:g}; the times of client {client} must"
                " rise"
            )
        earlier.append([numbers[name] for name in (*COLUMNS[1:], *OPTIONAL) if name in numbers])
    if not rows:
        raise TraceError(f"network.trace: {path} has a header and no rows")
    return Trace(path, {client: _course(path, client, np.array(values)) for client, values in rows.items()})


def _check_header(path: Path, header: list[str]) -> None:
    expected = f"expected {', '.join(COLUMNS)} and perhaps {', '.join(OPTIONAL)}"
    given = f"found {', '.join(header)}" if any(header) else "found nothing"
    if absent := [name for name in COLUMNS if name not in header]:
        raise TraceError(f"network.trace: the first line of {path} lacks {', '.join(absent)}; {expected}, {given}")
    for name in header:
        if name not in COLUMNS + OPTIONAL:
            allowed = suggest.choices(COLUMNS + OPTIONAL, name)
            raise TraceError(f"network.trace: {path} has an unknown column {name!r}; expected {allowed}")
        if header.count(name) > 1:
            raise TraceError(f"network.trace: {path} has the column {name} {header.count(name)} times")


def _client(where: str, text: str) -> str:
    if text == ANYBODY:
        return text
    if not (text.isascii() and text.isdigit()):
        raise TraceError(f"{where}: client {text!r}, expected a client's index, from 0, or {ANYBODY} for all others")
    return str(int(text))


def _number(where: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise TraceError(f"{where}: {name} {text!r}, expected a number that is not negative")
    return number


def _course(path: Path, client: str, rows: Floats) -> Course:
    begins = rows[:, 0] - rows[0, 0]
    steps = np.diff(begins)
    durations = np.append(steps, steps[-1] if len(steps) else 1.0)
    for name, column in zip(COLUMNS[2:], (rows[:, 1], rows[:, 2]), strict=True):
        if not column.any():
            raise TraceError(
                f"network.trace: {path}: {name} of client {client} is 0 in every row, so no transfer would ever end"
            )
    return Course(begins, durations, rows[:, 1], rows[:, 2], rows[:, 3] if rows.shape[1] > 3 else None)
