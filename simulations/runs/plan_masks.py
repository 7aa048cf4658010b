"""From the sparsity of a scenario to the schedule of its masks."""

from __future__ import annotations

from fedpress.compression import seeds
from fedpress.compression.files import write_atomically
from fedpress.compression.models.pruning import at_initialization
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.wire import position_set
from fedpress.server.model import mask_schedules
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs.workload import Workload


def first_mask(workload: Workload, folder: RunFolder) -> Mask | None:
    """Return the mask that a run began with; None: it has found none, or begins with all of its weights."""
    size = workload.layout.size
    return Mask.at(position_set.unpack(folder.mask.read_bytes(), size), size) if folder.mask.is_file() else None


def schedule(workload: Workload, folder: RunFolder) -> mask_schedules.MaskSchedule | None:
    """Return the scenario's mask schedule; None: the model has all of its weights.

    A first mask is found once and kept in the run folder, so that a run that goes on need not find it again.
    """
    choice, end = workload.scenario.sparsity, workload.scenario.mask_end
    if choice is None:
        return None
    first = first_mask(workload, folder)
    if first is None and choice.initial is not None:
        # Labels are needed: those of the part that all choices are made on.
        examples, seed = workload.task.data().validation, seeds.derive(workload.scenario.seed, "mask")
        found = at_initialization.initial_mask(
            workload.fresh_model(), workload.layout, choice.initial, workload.task.loss, examples, seed
        )
        write_atomically(folder.mask, position_set.pack(found.positions, workload.layout.size))
        first = found
    return choice.schedule(first, end)
