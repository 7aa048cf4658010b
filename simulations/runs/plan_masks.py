"""Mask schedule of a scenario with `sparsity`."""

from __future__ import annotations

from fedpress.compression import files, seeds
from fedpress.compression.files import write_atomically
from fedpress.compression.models.pruning import at_initialization
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.wire import position_set
from fedpress.server.model import mask_schedules
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs.workload import Workload


def first_mask(workload: Workload, folder: RunFolder) -> Mask | None:
    """Return the first mask of a run from its folder; None: not found yet, or the run begins with all weights.

    Args:
        workload: Work on the global model.
        folder: Of the run.
    """
    size = workload.layout.size
    return (
        Mask.at(position_set.unpack(files.read_regular(folder.mask, files.MOST_DATA), size), size)
        if folder.mask.is_file()
        else None
    )


def schedule(workload: Workload, folder: RunFolder) -> mask_schedules.MaskSchedule | None:
    """Return the mask schedule of a scenario; None: the model has all of its weights.

    The first mask is written into the run folder, from which a run that goes on reads it.

    Args:
        workload: Work on the global model.
        folder: Of the run.
    """
    choice, end = workload.scenario.sparsity, workload.scenario.mask_end
    if choice is None:
        return None
    first = first_mask(workload, folder)
    if first is None and choice.initial is not None:
        # The methods need labels; validation data have some and are no client's.
        examples, seed = workload.task.data().validation, seeds.derive(workload.scenario.seed, "mask")
        first = at_initialization.initial_mask(
            workload.fresh_model(), workload.layout, choice.initial, workload.task.loss, examples, seed
        )
        write_atomically(folder.mask, position_set.pack(first.positions, workload.layout.size))
    return choice.schedule(first, end)
