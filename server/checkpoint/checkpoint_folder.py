"""Checkpoints of a run, and between them a journal of its rounds.

    <folder>/round-00000012.safetensors     arrays, one of which is a JSON text with the rest
    <folder>/round-00000012.journal         what the rounds since then need to be done again (`journal`)

A checkpoint holds the whole state, and costs as much time as the model is large. So it is written as often as a budget
of time allows, and the other rounds append an entry to the journal, as large as their payloads. The newest few are
kept. A torn or foreign file is never used: it is moved aside (`.damaged`), and the one before it is read. No pickle: a
checkpoint cannot run code.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from logging import ERROR, INFO
from pathlib import Path
from typing import Any, NamedTuple

from flwr.supercore import log

from fedpress.compression import files
from fedpress.server.checkpoint.journal import Entry, Journal
from fedpress.server.checkpoint.settings import BUDGET
from fedpress.server.checkpoint.state import CheckpointError, DamagedCheckpoint, Packed, Saved, unpack

KEEP = 3
SMALL = 1 << 23
"""Bytes up to which a checkpoint takes hardly longer than an entry of the journal: both wait for the disk."""
_NAME = re.compile(r"round-(\d{8})\.safetensors")


class Checkpoint(NamedTuple):
    """A checkpoint that was read, and its journal."""

    round: int
    saved: Saved
    skipped: int  # newer states that were damaged
    journal: Journal

    def entries(self) -> Iterator[Entry]:
        """Yield the rounds since the checkpoint, one in memory at a time."""
        return self.journal.entries()


class CheckpointFolder:
    """The checkpoints of one federation.

    Args:
        path: the folder; made if it is absent.
        keep: number of the newest that stay.
        budget: share of the time that checkpoints may take. 1: there is one after each round; 0: there is one only
            where the journal cannot do without.

    Raises:
        CheckpointError: the folder cannot be made.
        ValueError: `keep` is below 1, or `budget` out of range.
    """

    def __init__(self, path: Path | str, keep: int = KEEP, budget: float = BUDGET) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1 checkpoint")
        if not 0 <= budget <= 1:
            raise ValueError(f"budget is {budget}, expected a share of the time from 0 to 1, such as {BUDGET}")
        self.path = Path(path)
        self._keep = keep
        self._budget = budget
        self._journal: Journal | None = None  # after the newest checkpoint
        self._tip = ""  # checksum of the newest state
        self._size = 0  # of the newest checkpoint, in bytes
        self._written = 0  # bytes of the journal
        self._began = time.monotonic()
        self._spent = 0.0  # seconds, of checkpoints and entries
        self._cost: float | None = None  # seconds of the last checkpoint; None: none was written yet
        self._skipped = 0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the folder of checkpoints {self.path}: {error}") from error

    def rounds(self) -> list[int]:
        """Return the rounds that have checkpoints, in order."""
        return sorted(int(match[1]) for path in self.path.iterdir() if (match := _NAME.fullmatch(path.name)))

    def save(self, round: int, state: Mapping[str, Any], entry: Mapping[str, Any] | None = None) -> None:
        """Make a round durable, by a checkpoint or an entry of the journal; it is on the disk when this returns.

        Args:
            round: number of the round whose step was taken last.
            state: parts of the whole state by name, as `state.Packed` takes them.
            entry: parts of the entry that leads from the state before to this one; None: there is none such.

        Raises:
            CheckpointError: it cannot be written; the earlier ones are untouched.
        """
        began = time.monotonic()
        journal = None if entry is None or self._due() else self._journal
        path = self._path(round) if journal is None else journal.path
        try:
            packed = Packed(entry, self._tip) if journal and entry is not None else None
            if journal and packed and self._written + packed.size <= self._size:
                self._written = journal.append(packed)
                self._tip = packed.checksum
            else:
                path = self._path(round)
                self._save_whole(path, round, Packed(state))
                self._cost = time.monotonic() - began
        except OSError as error:
            raise CheckpointError(
                f"cannot write the checkpoint {path}: {error}; the one before it is untouched. Make room on the disk,"
                " then the run can go on from there"
            ) from error
        self._spent += time.monotonic() - began

    def _due(self) -> bool:
        """Return whether a checkpoint is due, rather than an entry of the journal."""
        if not self._budget:
            return False
        if self._cost is None or self._budget == 1 or self._size <= SMALL:
            return True
        return self._spent + self._cost <= self._budget * (time.monotonic() - self._began)

    def _save_whole(self, path: Path, round: int, packed: Packed) -> None:
        files.write_atomically(path, packed.pieces())
        if self._cost is None and self._budget < 1 and packed.size > SMALL:
            log(
                INFO, "The first checkpoint is written; others follow within %.0f %% of the time, the rounds between"
                " them are kept in a journal", 100 * self._budget,
            )  # fmt: skip
        self._tip, self._size, self._written = packed.checksum, path.stat().st_size, 0
        self._journal = Journal(path.with_suffix(".journal"), packed.checksum)
        self._journal.path.unlink(missing_ok=True)  # of a checkpoint of this round that is replaced
        for earlier in [number for number in self.rounds() if number < round][: -self._keep + 1 or None]:
            self._path(earlier).unlink(missing_ok=True)
            self._path(earlier).with_suffix(".journal").unlink(missing_ok=True)

    def newest(self) -> Checkpoint | None:
        """Read the newest whole checkpoint and its journal; damaged ones are moved aside and logged.

        No other process may write to the folder: leftovers of killed writes are removed.

        Returns:
            The checkpoint; None in a folder that never held one.

        Raises:
            CheckpointError: there are only damaged ones, or the newest needs a newer fedpress.
        """
        files.remove_leftovers(self.path)
        for round in reversed(self.rounds()):
            path = self._path(round)
            try:
                saved = unpack(path)
                self._size = path.stat().st_size
            except DamagedCheckpoint as error:
                aside = files.move_aside(path)
                log(ERROR, "the checkpoint %s cannot be used: %s. It is now %s", path, error, aside.name)
                if (journal := path.with_suffix(".journal")).exists():
                    files.move_aside(journal)
                self._skipped += 1
                continue
            except CheckpointError as error:
                raise CheckpointError(f"the checkpoint {path} cannot be used: {error}") from None
            self._journal = Journal(path.with_suffix(".journal"), saved.checksum)
            self._tip, self._written = saved.checksum, 0
            try:
                for entry in self._journal.entries():
                    self._tip, self._written = entry.saved.checksum, entry.stop
                self._journal.cut(self._written, keep=False)
            except DamagedCheckpoint as error:
                self.give_up(self._written, str(error))
            except CheckpointError as error:
                raise CheckpointError(f"the journal {self._journal.path} cannot be used: {error}") from None
            return Checkpoint(round, saved, self._skipped, self._journal)
        if any(self.path.glob(f"*{files.DAMAGED}*")):
            raise CheckpointError(
                f"no checkpoint in {self.path} can be used, all are damaged; restore one from a backup, or remove the"
                " folder to start anew"
            )
        return None

    def give_up(self, end: int, problem: str) -> None:
        """Give up the newest journal from a place on; all of it is kept beside.

        Args:
            end: the place, in bytes.
            problem: why it cannot be used.

        Raises:
            OSError: it cannot be cut off.
        """
        assert self._journal is not None
        log(ERROR, "the journal %s cannot be used from byte %d on: %s", self._journal.path, end, problem)
        self._journal.cut(end, keep=True)
        self._written = end
        self._skipped += 1

    def _path(self, round: int) -> Path:
        return self.path / f"round-{round:08d}.safetensors"
