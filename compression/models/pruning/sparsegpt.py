"""SparseGPT: single weights are removed input by input, and the weights that stay make up for them.

E. Frantar, D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023, Algorithm
1 (`reconstruction`). Within each block of 128 inputs the weights of the least w^2 / d^2 go, d being the diagonal of the
Cholesky factor: those whose removal costs the least error of the layer's outputs after the others have changed
(section 3.2); for 2:4 two of every four inputs that come next (section 3.3).

Each layer is calibrated on the outputs of the pruned layers before it, without labels (`calibration`). Embeddings, and
weights that no product with the data reaches, are pruned by magnitude within their layer; the latter are logged.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Final

import torch
from torch import Tensor, nn

from fedpress.compression.models import calibration, masks, reconstruction
from fedpress.compression.models.calibration import Site
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.models.masks import Masks
from fedpress.compression.models.pruning import weights
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.pruning.settings import Pruning
from fedpress.compression.models.reconstruction import Begin, ReplaceColumn
from fedpress.compression.models.reproducible import reproducible

_FOUR: Final = 4

_log = logging.getLogger(__name__)


def pruned(
    model: nn.Module,
    inputs: Inputs,
    density: float,
    settings: Pruning = Pruning(granularity="weights", importance="sparsegpt"),
    within: Masks | None = None,
    *,
    seed: int = 0,
) -> tuple[nn.Module, Masks]:
    """Return the pruned model, zero outside its masks, and the masks.

    Args:
        model: The model; untouched.
        inputs: Calibration inputs, of N >= 1 examples.
        density: Density of the covered weights together, in (0, 1], but for those of ignored layers; 2:4: 0.5.
        settings: Granularity, ranking by layer, and layers to ignore.
        within: Masks to choose from; None: all weights.
        seed: Seed of what a forward pass may draw.

    Raises:
        MaskError: `within` does not fit the model.
        NonFiniteError: The inputs of a weight hold NaN or infinity.
        PruneError: No layer has an ignored name.
        ValueError: The density is out of range, or there are no examples.
    """
    four = settings.granularity == "2:4"
    by_magnitude = Criterion(ranking=settings.ranking, tracing=settings)
    if four:
        kept = weights.semi_structured(model, by_magnitude)
    else:
        kept = weights.by_importance(model, density, by_magnitude, within)
    names = weights.prunable(model, by_magnitude)
    covered = masks.weights_of(model)
    densities = dict.fromkeys(names, density)
    if settings.ranking == "erk":
        densities = weights.erk({name: tuple(covered[name].shape) for name in names}, density)

    def visit(site: Site, weight: Tensor, moments: Tensor) -> None:
        if site.name not in densities:
            return
        allowed = torch.ones(site.size, dtype=torch.bool)
        if within is not None:
            allowed = site.matrix(within[site.name])
        flags = torch.zeros(site.size, dtype=torch.bool)
        begin = _in_fours(flags, allowed) if four else _in_blocks(flags, allowed, densities[site.name])
        original = site.matrix(covered[site.name].cpu())
        weight.copy_(reconstruction.reconstructed(original, moments, begin))
        site.matrix(kept[site.name]).copy_(flags)

    with reproducible(seed):
        sparse = copy.deepcopy(model).cpu()
        masks.apply(sparse, kept)
        reached = calibration.calibrate(sparse, inputs, visit)
    masks.apply(sparse, kept)
    for given, changed in zip(model.modules(), sparse.modules(), strict=True):
        changed.training = given.training
    unreached = [name for name in reached.unreached if name in densities]
    if unreached:
        _log.warning("sparsegpt: no product with the data reaches %s: pruned by magnitude", ", ".join(unreached))
    return sparse, kept


def _in_blocks(flags: Tensor, allowed: Tensor, density: float) -> Begin:
    """Return how columns are settled: of each block the weights of the largest scores stay, and `flags` says which."""

    def begin(columns: slice, values: Tensor, diagonal: Tensor) -> ReplaceColumn:
        scores = (values / diagonal[:, None]).square().masked_fill(~allowed[:, :, columns], -math.inf)
        count = max(1, round(density * scores.numel()))
        flags[:, :, columns] = weights.largest(scores, count)
        return lambda index, column: torch.where(flags[:, :, index], column, 0.0)

    return begin


def _in_fours(flags: Tensor, allowed: Tensor) -> Begin:
    """Return how columns are settled: two of every four stay, chosen when the first of the four comes."""

    def begin(columns: slice, values: Tensor, diagonal: Tensor) -> ReplaceColumn:
        def replace_column(index: int, column: Tensor) -> Tensor:
            if index % _FOUR == 0:
                four = slice(index, min(index + _FOUR, columns.stop))
                inner = slice(four.start - columns.start, four.stop - columns.start)
                scores = (values[:, :, inner] / diagonal[:, None, inner]).square()
                flags[:, :, four] = weights.best_of_four(scores.masked_fill(~allowed[:, :, four], -math.inf))
            return torch.where(flags[:, :, index], column, 0.0)

        return replace_column

    return begin
