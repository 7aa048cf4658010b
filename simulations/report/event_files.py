"""TensorBoard event files of a run, written during the run or afterwards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from fedpress.simulations.results.records import Results, RoundResult
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError
from fedpress.simulations.runs.observer import Observer

if TYPE_CHECKING:
    from fedpress.simulations.scenario.scenario import Scenario


MOST_STEP = (1 << 63) - 1  # of an event


class EventFiles(Observer):
    """Observer that writes a run's scalars into the run folder's `tensorboard/`.

    By round: accuracy, loss, bytes/up and bytes/down (so far), replies/accepted, replies/refused, and the accuracy
    of each tier that trains. With the bytes so far as the step: accuracy_over_bytes/up and .../up_and_down.

    The files of an earlier attempt are replaced; a resumed run writes its earlier rounds again.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._writer: EventFileWriter | None = None
        self._up = self._down = 0

    def on_start(self, scenario: Scenario | None, folder: RunFolder) -> None:
        """Remember the folder; the file is created at the first round.

        Args:
            scenario: Not used.
            folder: The run folder.
        """
        self._folder = folder.tensorboard

    def on_resume(self, rounds: list[RoundResult]) -> None:
        """Write the earlier rounds."""
        for result in rounds:
            self._add(result)

    def on_round(self, result: RoundResult) -> None:
        """Write a round, and flush the file."""
        self._add(result)
        assert self._writer is not None
        self._writer.flush()

    def on_end(self, results: Results) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, result: RoundResult) -> None:
        if self._writer is None:
            self._writer = _begin(self._folder)
        self._up += result.up_bytes
        self._down += result.down_bytes
        scalars = {
            "accuracy": result.accuracy,
            "loss": result.loss,
            "bytes/up": self._up,
            "bytes/down": self._down,
            "replies/accepted": result.replies,
            "replies/refused": result.refused,
            **{f"tiers/{name}/accuracy": tier.accuracy for name, tier in result.tiers.items()},
        }
        self._write(result.round, scalars)
        self._write(self._up, {"accuracy_over_bytes/up": result.accuracy})
        self._write(self._up + self._down, {"accuracy_over_bytes/up_and_down": result.accuracy})

    def _write(self, step: int, scalars: dict[str, float | None]) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items() if value is not None]
        if values and self._writer is not None:
            self._writer.add_event(
                Event(wall_time=time.time(), step=min(step, MOST_STEP), summary=Summary(value=values))
            )


def write(path: Path | str) -> Path:
    """Write the event files of a run that has ended, and return their folder.

    Raises:
        RunFolderError: There is no such run, its results.json is damaged, or the run has not ended.
    """
    folder = RunFolder.open(path)
    results = folder.load_results()
    if results.status == "running":
        raise RunFolderError(
            f"the run in {path} is not finished: it is still going on, or it was killed; a resumed run writes its event"
            f" files itself: fedpress simulate --resume {path} --tensorboard"
        )
    events = EventFiles()
    events.on_start(None, folder)
    events.on_resume(results.rounds)
    events.on_end(results)
    return folder.tensorboard


def _begin(folder: Path | None) -> EventFileWriter:
    assert folder is not None
    folder.mkdir(exist_ok=True)
    for old in folder.glob("events.out.tfevents.*"):  # TensorBoard would show its rounds as well
        old.unlink()
    return EventFileWriter(str(folder))
