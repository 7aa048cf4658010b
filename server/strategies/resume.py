"""Checkpoint of a run after a step, and resumption from it (`SparseFed.start`)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from fedpress.server.checkpoint.checkpoint_folder import Checkpoint, CheckpointFolder
from fedpress.server.checkpoint.state import CheckpointError, Resumable, restore

_METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")


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


def save(
    folder: CheckpointFolder, step: TakenStep, result: Result, models: list[str], parts: Mapping[str, Resumable]
) -> None:
    """Write the checkpoint of a step; it is on the disk when this returns.

    Args:
        folder: folder of the checkpoints.
        step: the step that was taken.
        result: metrics of the rounds so far.
        models: names of the models that are trained; the global model's is empty.
        parts: parts of the run by name.

    Raises:
        CheckpointError: it cannot be written.
    """
    metrics = {name: {number: dict(record) for number, record in getattr(result, name).items()} for name in _METRICS}
    progress = Progress(step, metrics, models)
    folder.save(step.round, {"progress": progress, **{name: part.state() for name, part in parts.items()}})


def go_on(checkpoint: Checkpoint, result: Result, models: list[str], parts: Mapping[str, Resumable]) -> TakenStep:
    """Restore the parts of a run from a checkpoint, and return its step.

    Args:
        checkpoint: the newest checkpoint.
        result: gets the metrics of the earlier rounds.
        models: names of the models that this run trains.
        parts: parts of this run by name.

    Raises:
        CheckpointError: the checkpoint is of another run.
    """
    progress = checkpoint.saved.part("progress", Progress)
    if progress.models != models:
        raise CheckpointError(
            f"the checkpoint has the tiers {progress.models[1:]}, this run has {models[1:]}; give each federation a"
            " folder of its own"
        )
    for name, part in parts.items():
        restore(part, checkpoint.saved, name)
    for name, records in progress.metrics.items():
        getattr(result, name).update({number: MetricRecord(values) for number, values in records.items()})
    return progress.step
