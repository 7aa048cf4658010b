"""Checkpoint of a run after a step, and resumption from it (`SparseFed.start`)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from fedpress.server.checkpoint.checkpoint_folder import Checkpoint, CheckpointFolder
from fedpress.server.checkpoint.state import CheckpointError, Redone, Resumable, restore
from fedpress.server.rounds.federation import Federation
from fedpress.server.rounds.stepper import StepRecord, WeighedUpdate

_METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")

Redo = Callable[[int, Mapping[str, list[WeighedUpdate]]], None]
"""Takes the steps of a round again, given its number and the updates by the name of the federation."""


class TakenStep(NamedTuple):
    """A step and its duration."""

    round: int
    seconds: float  # from the orders to the step, by the grid's clock


class Progress(NamedTuple):
    """Progress of a run.

    Attributes:
        step: the last step.
        metrics: metrics in Flower's `Result`, by its field and by round.
        models: names of the models that are trained; the global model's is empty.
    """

    step: TakenStep
    metrics: dict[str, dict[int, dict[str, Any]]]
    models: list[str]


class Steps(NamedTuple):
    """Steps of a round, by the name of the federation."""

    records: dict[str, StepRecord]


class OtherModel(CheckpointError):
    """The steps of a journal have led to another model than before.

    Args:
        start: place of the entry in the journal, in bytes.
        text: what is wrong.
    """

    def __init__(self, start: int, text: str) -> None:
        super().__init__(text)
        self.start = start


def save(
    folder: CheckpointFolder,
    step: TakenStep,
    result: Result,
    federations: Mapping[str, Federation],
    parts: Mapping[str, Resumable],
    *,
    redoable: bool,
) -> None:
    """Make a step durable, by a checkpoint or an entry of the journal; it is on the disk when this returns.

    Args:
        folder: folder of the checkpoints.
        step: the step that was taken.
        result: metrics of the rounds so far.
        federations: federations of the models that are trained, by name; the global model's is empty.
        parts: parts of the run by name, the federations among them.
        redoable: whether the step can be taken again from its updates alone.

    Raises:
        CheckpointError: it cannot be written.
    """
    metrics = {name: {number: dict(record) for number, record in getattr(result, name).items()} for name in _METRICS}
    progress = Progress(step, metrics, list(federations))
    steps = {name: federation.recorded_step(step.round) for name, federation in federations.items()}
    records = {name: record for name, record in steps.items() if record is not None}
    whole: dict[str, Any] = {"progress": progress, **{name: part.state() for name, part in parts.items()}}
    entry = None
    if redoable and len(records) == len(steps):
        left = {name: part.entry() for name, part in parts.items() if isinstance(part, Redone)}
        entry = {name: state for name, state in {**whole, **left}.items() if state is not None}
        entry["steps"] = Steps(records)
    folder.save(step.round, whole, entry)


def go_on(
    checkpoint: Checkpoint,
    result: Result,
    federations: Mapping[str, Federation],
    parts: Mapping[str, Resumable],
    redo: Redo,
) -> TakenStep:
    """Restore the parts of a run from a checkpoint and the journal after it, and return the last step.

    Args:
        checkpoint: the newest checkpoint.
        result: gets the metrics of the earlier rounds.
        federations: federations of the models that this run trains, by name.
        parts: parts of this run by name, the federations among them.
        redo: takes the steps of a round again.

    Raises:
        OtherModel: a step of the journal has led to another model than before.
        CheckpointError: the checkpoint is of another run.
    """
    newest = checkpoint.saved
    progress = newest.part("progress", Progress)
    if progress.models != list(federations):
        raise CheckpointError(
            f"the checkpoint has the tiers {progress.models[1:]}, this run has {list(federations)[1:]}; give each"
            " federation a folder of its own"
        )
    redone = {name: part for name, part in parts.items() if isinstance(part, Redone)}
    for name, large in redone.items():
        restore(large, newest, name)
    for start, _, newest in checkpoint.entries():
        progress, steps = newest.part("progress", Progress), newest.part("steps", Steps).records
        redo(progress.step.round, {name: record.updates for name, record in steps.items()})
        for name, record in steps.items():
            if federations[name].model.checksum() != record.checksum:
                raise OtherModel(
                    start, f"round {progress.step.round}, taken again, has led to another model than before; was it on"
                    " another processor, or with another PyTorch?",
                )  # fmt: skip
    for name, part in parts.items():
        if name not in redone or (newest is not checkpoint.saved and name in newest):
            part.restore(newest.part_of(part, name))
    for name, records in progress.metrics.items():
        getattr(result, name).update({number: MetricRecord(values) for number, values in records.items()})
    return progress.step
