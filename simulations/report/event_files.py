"""A run's figures as TensorBoard event files: written while it goes on, or of one that is over."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from fedpress.simulations.results.records import Results, RoundResult, StudentResult
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError

if TYPE_CHECKING:
    from fedpress.compression.models.step import SearchProgress
    from fedpress.simulations.scenario.scenario import Scenario


class EventFiles:
    """Follows a run (`recorder.Observer`) and writes its scalars into the run folder's `tensorboard/`.

    By round: accuracy, loss, bytes/up and bytes/down (so far), replies/accepted, replies/refused, and the accuracy
    of each tier that trains. Over bytes so far, which are then the step: accuracy_over_bytes/up and .../up_and_down.

    What is there of an earlier attempt is replaced, with the rounds before it.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._writer: EventFileWriter | None = None
        self._up = self._down = 0

    def on_start(self, scenario: Scenario | None, folder: RunFolder) -> None:
        """Know the folder; the file is made with the first round."""
        self._folder = folder.tensorboard

    def on_resume(self, rounds: list[RoundResult]) -> None:
        """Write the rounds before."""
        for result in rounds:
            self._add(result)

    def on_round(self, result: RoundResult) -> None:
        """Write a round, to be seen at once."""
        self._add(result)
        assert self._writer is not None
        self._writer.flush()

    def on_search(self, tier: str, step: SearchProgress) -> None:
        """Nothing to write."""

    def on_student(self, result: StudentResult) -> None:
        """Nothing to write."""

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
            self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def write(path: Path | str) -> Path:
    """Writes the event files of a run that is over, and returns their folder.

    Raises:
        RunFolderError: there is no such run, its results.json is torn, or the run is still going on.
    """
    folder = RunFolder.open(path)
    results = folder.load_results()
    if results.status == "running":
        raise RunFolderError(
            f"the run in {path} is not finished: it is still going on, or it was killed, and then it writes its event"
            f" files as it goes on: fedpress simulate --resume {path} --tensorboard"
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
