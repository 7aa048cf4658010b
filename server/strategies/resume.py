"""How `SparseFed.start` goes on in the middle: from the step that was taken last, and all that it depends on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from fedpress.server.checkpoint.checkpoint_folder import Checkpoint, CheckpointFolder
from fedpress.server.checkpoint.state import CheckpointError, Resumable, restore

_METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")


class Step(NamedTuple):
    """The step of a round, taken or not."""

    round: int
    seconds: float  # from the orders to the step, by the grid's clock


class Progress(NamedTuple):
    """How far a run has come.

    Attributes:
        step: the last one.
        metrics: of Flower's `Result`, by its field and by round.
        models: names of those that are trained; the global model's is empty.
    """

    step: Step
    metrics: dict[str, dict[int, dict[str, Any]]]
    models: list[str]


def save(
    folder: CheckpointFolder, step: Step, result: Result, models: list[str], parts: Mapping[str, Resumable]
) -> None:
    """Write the checkpoint of a step; it is on the disk when this returns.

    Raises:
        CheckpointError: it cannot be written.
    """
    metrics = {name: {number: dict(record) for number, record in getattr(result, name).items()} for name in _METRICS}
    progress = Progress(step, metrics, models)
    folder.save(step.round, {"progress": progress, **{name: part.state() for name, part in parts.items()}})


def go_on(checkpoint: Checkpoint, result: Result, models: list[str], parts: Mapping[str, Resumable]) -> Step:
    """Let the parts of a run go on from a checkpoint, and return its step.

    Args:
        checkpoint: the newest.
        result: gets the metrics of the rounds before.
        models: names of those that this run trains.
        parts: of this run, by name.

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
