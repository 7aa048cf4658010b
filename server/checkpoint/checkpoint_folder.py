"""Checkpoints: the state of a run, in one file for each round, written whole or not at all.

    <folder>/round-00000012.safetensors     arrays, one of which is a JSON text with the rest

The newest few are kept. A torn or foreign file is never used: it is moved aside (`.damaged`), and the one before it is
read. No pickle: a checkpoint cannot run code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from logging import ERROR
from pathlib import Path
from typing import Any, NamedTuple

from flwr.supercore import log

from fedpress.compression import files
from fedpress.server.checkpoint.state import CheckpointError, DamagedCheckpoint, Saved, pieces, unpack

KEEP = 3
_NAME = re.compile(r"round-(\d{8})\.safetensors")


class Checkpoint(NamedTuple):
    """A checkpoint that was read."""

    round: int
    saved: Saved
    skipped: int  # newer ones that were damaged


class CheckpointFolder:
    """The checkpoints of one federation.

    Args:
        path: the folder; made if it is absent.
        keep: number of the newest that stay.

    Raises:
        CheckpointError: the folder cannot be made.
        ValueError: `keep` is below 1.
    """

    def __init__(self, path: Path | str, keep: int = KEEP) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1 checkpoint")
        self.path = Path(path)
        self._keep = keep
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the folder of checkpoints {self.path}: {error}") from error

    def rounds(self) -> list[int]:
        """Return the rounds that have checkpoints, in order."""
        return sorted(int(match[1]) for path in self.path.iterdir() if (match := _NAME.fullmatch(path.name)))

    def save(self, round: int, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of a round; it is on the disk when this returns. Old ones are removed.

        Args:
            round: number of the round whose step was taken last.
            state: parts of the state by name, as `state.pieces` takes them.

        Raises:
            CheckpointError: it cannot be written; the earlier ones are untouched.
        """
        path = self._path(round)
        try:
            files.write_atomically(path, pieces(state))
            for earlier in [number for number in self.rounds() if number < round][: -self._keep + 1 or None]:
                self._path(earlier).unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot write the checkpoint {path}: {error}; the one before it is untouched. Make room on the disk,"
                " then the run can go on from there"
            ) from error

    def newest(self) -> Checkpoint | None:
        """Read the newest whole checkpoint; damaged ones are moved aside and logged.

        No other process may write to the folder: leftovers of killed writes are removed.

        Returns:
            The checkpoint; None in a folder that never held one.

        Raises:
            CheckpointError: there are only damaged ones, or the newest needs a newer fedpress.
        """
        files.remove_leftovers(self.path)
        skipped = 0
        for round in reversed(self.rounds()):
            path = self._path(round)
            try:
                with files.open_regular(path) as file:
                    return Checkpoint(round, unpack(file), skipped)
            except DamagedCheckpoint as error:
                aside = files.move_aside(path)
                log(ERROR, "the checkpoint %s cannot be used: %s. It is now %s", path, error, aside.name)
                skipped += 1
            except CheckpointError as error:
                raise CheckpointError(f"the checkpoint {path} cannot be used: {error}") from None
        if any(self.path.glob(f"*{files.DAMAGED}*")):
            raise CheckpointError(
                f"no checkpoint in {self.path} can be used, all are damaged; restore one from a backup, or remove the"
                " folder to start anew"
            )
        return None

    def _path(self, round: int) -> Path:
        return self.path / f"round-{round:08d}.safetensors"
