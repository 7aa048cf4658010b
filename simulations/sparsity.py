"""From the sparsity of a scenario to the schedule of its masks."""

from __future__ import annotations

from fedpress.compression import seeds, support
from fedpress.compression.files import write_atomically
from fedpress.compression.mask import Mask
from fedpress.compression.models import initial_mask
from fedpress.server import masks
from fedpress.simulations.run_folder import RunFolder
from fedpress.simulations.workload import Workload


def first_mask(workload: Workload, folder: RunFolder) -> Mask | None:
    """Return the mask that a run began with; None: it has found none, or begins with all of its weights."""
    size = workload.layout.size
    return Mask.at(support.unpack(folder.mask.read_bytes(), size), size) if folder.mask.is_file() else None


def schedule(workload: Workload, folder: RunFolder) -> masks.Schedule | None:
    """Return the scenario's mask schedule; None: the model has all of its weights.

    A first mask is found once and kept in the run folder, so that a run that goes on need not find it again.
    """
    choice, end = workload.scenario.sparsity, workload.scenario.mask_end
    if choice is None:
        return None
    if choice.initial is None:
        return masks.Gradual(choice.density, end, choice.begin, choice.every, choice.scope or "layer")
    first = first_mask(workload, folder)
    if first is None:
        # Labels are needed: those of the part that all choices are made on.
        examples, seed = workload.task.data().validation, seeds.derive(workload.scenario.seed, "mask")
        found = initial_mask.initial_mask(
            workload.fresh_model(), workload.layout, choice.initial, workload.task.loss, examples, seed
        )
        write_atomically(folder.mask, support.pack(found.positions, workload.layout.size))
        first = found
    if not choice.changes:
        return masks.Fixed(first)
    exchange = masks.Exchange(choice.every, end, choice.fraction)
    return masks.FedDST(first, exchange) if choice.method == "feddst" else masks.RigL(first, exchange)
