"""Masks of single weights by importance; weights outside a mask stay zero (`masks`).

Law, a property test: a mask made `within` another is a subset of it.

Densities by layer: U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, "Rigging the Lottery: Making All Tickets
Winners", ICML 2020, section 3 (Erdős–Rényi kernels, ERK). Blocks of 2:4: A. Mishra et al., "Accelerating Sparse Deep
Neural Networks", arXiv:2104.08378, 2021, section 3. By the importance `wanda`, which is compared within each output,
every output of a layer keeps the same number of weights up to one, and blocks of four are of neighboring inputs in the
orientation in which the weight is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedpress.compression.models.calibration import Site
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
        flags = largest(together, round(density * len(together)))
        parts = torch.split(flags, [score.numel() for score in scores.values()])
        masks = {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}
        return dense(model) | {name: mask | largest(scores[name], 1) for name, mask in masks.items()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    by_layer = erk(shapes, density) if criterion.ranking == "erk" else dict.fromkeys(shapes, density)
    return dense(model) | {
        name: largest(score, max(1, round(by_layer[name] * score.numel())), _sites(name, criterion))
        for name, score in scores.items()
    }


def _sites(name: str, criterion: Criterion) -> list[Site]:
    """Return the matrices of a parameter whose outputs are ranked each by itself."""
    return [site for site, _ in (criterion.norms or {}).get(name, ())] if criterion.importance == "wanda" else []


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
        masks[name] = torch.zeros(score.shape, dtype=torch.bool)
        covered = torch.zeros(score.shape, dtype=torch.bool)
        for site in _sites(name, criterion):
            site.matrix(masks[name]).copy_(best_of_four(site.matrix(score)))
            site.matrix(covered).fill_(True)
        masks[name] |= best_of_four(score.flatten(1)).reshape(score.shape) & ~covered
    return masks


def best_of_four(scores: Tensor) -> Tensor:
    """Return the mask of the two largest scores of every four neighbors along the last axis.

    Args:
        scores: Scores (..., inputs).
    """
    columns = scores.shape[-1]
    padded = nn.functional.pad(scores, (0, -columns % 4), value=-math.inf).reshape(*scores.shape[:-1], -1, 4)
    flags = torch.zeros(padded.shape, dtype=torch.bool).scatter_(-1, padded.topk(2, dim=-1).indices, True)
    return flags.flatten(-2)[..., :columns] & (scores > -math.inf)


def is_semi_structured(mask: Tensor) -> bool:
    """Return whether a mask (outputs, inputs, ...) keeps at most two of every four neighboring inputs."""
    rows = mask.flatten(1)
    return bool((nn.functional.pad(rows, (0, -rows.shape[1] % 4)).reshape(len(rows), -1, 4).sum(2) <= 2).all())


def largest(scores: Tensor, count: int, sites: Sequence[Site] = ()) -> Tensor:
    """Return the mask of the `count` largest scores; ties by lowest position, and never scores of minus infinity.

    Args:
        scores: Scores, in the shape of the weight.
        count: Number of weights to keep.
        sites: Matrices of which each output keeps as many as any other, up to one.
    """
    order = scores.flatten().argsort(descending=True, stable=True)
    if sites:
        ranks = _ranks(scores.flatten(1)).reshape(scores.shape)  # of what no site covers
        for site in sites:
            site.matrix(ranks).copy_(_ranks(site.matrix(scores)))
        ranks[scores == -math.inf] = scores.numel()
        order = order[ranks.flatten()[order].argsort(stable=True)]
    flags = torch.zeros(scores.numel(), dtype=torch.bool)
    flags[order[:count]] = True
    return flags.reshape(scores.shape) & (scores > -math.inf)


def _ranks(scores: Tensor) -> Tensor:
    """Return the rank of each score along the last axis, 0 for the largest."""
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
