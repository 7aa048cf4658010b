"""Masks of single weights by importance; weights outside a mask stay zero (`masks`).

Law, a property test: a mask made `within` another is a subset of it.

Densities by layer: U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, "Rigging the Lottery: Making All Tickets
Winners", ICML 2020, section 3 (Erdős–Rényi kernels, ERK). Blocks of 2:4: A. Mishra et al., "Accelerating Sparse Deep
Neural Networks", arXiv:2104.08378, 2021, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedpress.compression.models.masks import Masks, check_fit, weights_of
from fedpress.compression.models.pruning import channel_groups, dynamic_sparsity, importance
from fedpress.compression.models.pruning.importance import Criterion


def dense(model: nn.Module) -> Masks:
    """Return the masks that keep every weight."""
    return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights_of(model).items()}


def density(masks: Mapping[str, Tensor]) -> float:
    """Return the fraction of all covered weights that is kept."""
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def densities(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the fraction of each layer's weights that is kept, by name."""
    return {name: float(mask.float().mean()) for name, mask in masks.items()}


def parameters_left(model: nn.Module, masks: Mapping[str, Tensor]) -> int:
    """Return the number of parameters without those outside the masks.

    Args:
        model: The model.
        masks: Masks of this model, by parameter name.
    """
    whole = sum(parameter.numel() for parameter in model.parameters())
    return whole - sum(int((~mask).sum()) for mask in masks.values())


def erk(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Return Erdős–Rényi-kernel densities by name (`dynamic_sparsity.erk`).

    >>> erk({"wide": (100, 100), "narrow": (10, 10)}, 0.2)
    {'wide': 0.192, 'narrow': 1.0}

    Args:
        shapes: Shapes of the weights by name, (outputs, inputs, kernel ...).
        density: Density of all of them together, in (0, 1].
    """
    return dict(zip(shapes, dynamic_sparsity.erk(list(shapes.values()), density), strict=True))


def by_importance(
    model: nn.Module, density: float, criterion: Criterion = importance.DEFAULT, within: Masks | None = None
) -> Masks:
    """Return the masks of the most important weights, at least one in every layer.

    >>> layer = nn.Linear(4, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.1, -3.0, 2.0, 0.5]]))
    >>> by_importance(layer, 0.5)["weight"]
    tensor([[False,  True,  True, False]])

    Args:
        model: Model whose weights are ranked; untouched.
        density: Density of all covered weights together, in (0, 1], but for those of ignored layers, which all stay.
        criterion: Importance and ranking: within each layer, over all, or within each layer at its ERK density.
        within: Masks to choose from; None: all weights.

    Raises:
        MaskError: `within` does not fit the model.
        PruneError: No layer has an ignored name.
        ValueError: The density is out of range, or the criterion is incomplete.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}; is it the part removed instead of kept?")
    every = weights_of(model)
    weights = {name: every[name] for name in prunable(model, criterion)}
    scores = importance.of_weights(weights, criterion)
    if within is not None:
        check_fit(every, within)
        scores = {name: score.masked_fill(~within[name], -math.inf) for name, score in scores.items()}
    if criterion.ranking == "global":
        together = torch.cat([score.flatten() for score in scores.values()])
        flags = _largest(together, round(density * len(together)))
        parts = torch.split(flags, [score.numel() for score in scores.values()])
        masks = {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}
        return dense(model) | {name: mask | _largest(scores[name], 1) for name, mask in masks.items()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    by_layer = erk(shapes, density) if criterion.ranking == "erk" else dict.fromkeys(shapes, density)
    return dense(model) | {
        name: _largest(score, max(1, round(by_layer[name] * score.numel()))) for name, score in scores.items()
    }


def prunable(model: nn.Module, criterion: Criterion) -> list[str]:
    """Return the names of the covered weights that do not belong to ignored layers.

    Args:
        model: The model.
        criterion: Criterion that names layers to ignore.

    Raises:
        PruneError: No layer has an ignored name.
    """
    paths = channel_groups.ignored_paths(model, criterion.tracing.ignored)
    return [name for name in weights_of(model) if name.rpartition(".")[0] not in paths]


def semi_structured(model: nn.Module, criterion: Criterion = importance.DEFAULT) -> Masks:
    """Return the masks that keep the two most important of every four neighboring inputs (2:4), which GPUs accelerate.

    Neighbors are along the flattened inputs of each output; of the one to three remaining at the end of a row, up to
    two are kept.

    Args:
        model: Model whose weights are ranked; untouched.
        criterion: Importance, and layers to ignore, which stay dense.
    """
    masks = dense(model)
    weights = weights_of(model)
    for name, score in importance.of_weights(
        {name: weights[name] for name in prunable(model, criterion)}, criterion
    ).items():
        rows = score.flatten(1)
        padded = nn.functional.pad(rows, (0, -rows.shape[1] % 4), value=-math.inf).reshape(len(rows), -1, 4)
        best = padded.topk(2, dim=2).indices
        flags = torch.zeros(padded.shape, dtype=torch.bool).scatter_(2, best, True)
        masks[name] = flags.flatten(1)[:, : rows.shape[1]].reshape(score.shape).clone()
    return masks


def is_semi_structured(mask: Tensor) -> bool:
    """Return whether a mask (outputs, inputs, ...) keeps at most two of every four neighboring inputs."""
    rows = mask.flatten(1)
    return bool((nn.functional.pad(rows, (0, -rows.shape[1] % 4)).reshape(len(rows), -1, 4).sum(2) <= 2).all())


def _largest(scores: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` largest scores; ties by lowest position, and never scores of minus infinity."""
    flags = torch.zeros(scores.numel(), dtype=torch.bool)
    flags[scores.flatten().argsort(descending=True, stable=True)[:count]] = True
    return flags.reshape(scores.shape) & (scores > -math.inf)
