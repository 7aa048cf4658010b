"""Dynamic sparse training: densities by layer, gradual pruning, drop and grow.

Weights are the entries of tensors with two or more dimensions. Other parameters (biases, scales of norms) are few, and
every mask here keeps all of them; a density is the fraction of the weights that is kept.

U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, "Rigging the Lottery: Making All Tickets Winners", ICML 2020:
    RigL's drop and grow with its cosine, and ERK densities, section 3.
D. C. Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science", Nature Communications 2018: the Erdős-Rényi densities that ERK extends to kernels.
M. Zhu, S. Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", ICLR workshop
    2018, section 3: the cubic schedule.

Nothing here needs torch; scores that need gradients are in `at_initialization`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.errors import FedpressError
from fedpress.compression.settings import ADVANCED, STRICT, Field, Fraction, Positive, Settings, dataclass
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.mask import Mask, Positions

Scope = Literal["global", "layer", "erk"]
"""Ranking of weights: over all tensors; within each tensor, all with the same density; within each tensor, with ERK
densities."""
Method = Literal["snip", "grasp", "synflow", "erk", "magnitude"]
"""Methods of pruning at initialization (`at_initialization.initial_mask`)."""


@dataclass(frozen=True, config=STRICT)
class MaskSize(Settings):
    """Density of a mask, and the ranking of its weights."""

    density: Fraction = Field(
        default=0.1, kw_only=True, description="Fraction of the weights that is kept; biases and norms always are."
    )
    scope: Scope | None = Field(
        default=None,
        kw_only=True,
        json_schema_extra=ADVANCED,
        description="Ranking of weights: global over all layers, layer (each with the same density), or erk (each with"
        " its ERK density). null: erk for erk, feddst and rigl, layer for gradual, else global.",
    )


@dataclass(frozen=True, config=STRICT)
class AtInitialization(MaskSize):
    """Pruning at initialization (`at_initialization.initial_mask`).

    Raises:
        ValueError: A value is unknown or out of range, or the scope is not one of the method.
    """

    method: Method = Field(
        default="snip", description="snip, grasp, synflow, erk (drawn at random with ERK densities) or magnitude."
    )
    steps: int = Field(default=100, ge=1, description="Steps of synflow, which prunes gradually.")
    temperature: Positive = Field(
        default=200.0,
        description="Divisor of grasp's logits before the loss, as in the authors' code.",
    )
    batch_size: int = Field(
        default=500,
        ge=1,
        description="Examples in a forward pass; the scores depend on it by rounding only.",
    )

    def __post_init__(self) -> None:
        if self.method == "erk" and self.scope == "global":
            raise ValueError("scope global has no meaning for method erk, whose densities are by layer")


class LayerCollapse(FedpressError, ValueError):
    """A mask would remove all weights of a tensor, so that no signal passes the layer."""


def check_density(density: float) -> None:
    """Check that a density is in (0, 1].

    Raises:
        ValueError: It is not.
    """
    if not 0 < density <= 1:
        raise ValueError(
            f"the mask's density is {density}, expected 0 < density <= 1, such as 0.1 for a tenth of the weights"
        )


def is_weight(layout: Layout) -> NDArray[np.bool_]:
    """Return whether each tensor of the layout may lose entries, bool (tensors,)."""
    return np.array([len(spec.shape) >= 2 and spec.size > 0 for spec in layout.parameters], np.bool_)


def density(mask: Mask | None, layout: Layout) -> float:
    """Return the density of a mask; 1 without a mask, or where there are no weights.

    Args:
        mask: Mask of the model; None: dense.
        layout: Layout of the model.
    """
    whole, left = np.diff(layout.full.offsets), np.diff(layout.within(mask).offsets)
    weights = is_weight(layout)
    return float(left[weights].sum() / whole[weights].sum()) if whole[weights].sum() else 1.0


def erk(shapes: Sequence[tuple[int, ...]], density: float) -> list[float]:
    """Return Erdős–Rényi-kernel densities: of each tensor in proportion to the sum of its dimensions by their product.

    A tensor that would be more than dense is dense, and the others share what is left.

    >>> erk([(100, 100), (10, 10)], 0.2)
    [0.192, 1.0]

    Args:
        shapes: Shapes of the weights, (outputs, inputs, kernel ...).
        density: Density of all of them together, in (0, 1].
    """
    check_density(density)
    sizes = np.array([math.prod(shape) for shape in shapes], np.float64)
    raw = np.array([sum(shape) / max(1, math.prod(shape)) for shape in shapes])
    densities, below = np.ones(len(sizes)), np.ones(len(sizes), bool)
    while below.any():
        factor = (density * sizes.sum() - sizes[~below].sum()) / (raw * sizes)[below].sum()
        too_dense = below & (factor * raw > 1)
        if not too_dense.any():
            densities[below] = np.maximum(0.0, factor * raw[below])
            break
        below &= ~too_dense
    return [float(each) for each in densities]


def erk_densities(layout: Layout, density: float) -> list[float]:
    """Return the ERK density of each tensor of a layout; 1 for tensors other than weights.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> specs = TensorSpec("conv", (16, 1, 3, 3), "float32"), TensorSpec("head", (100, 2000), "float32")
    >>> [round(each, 3) for each in erk_densities(Layout(specs), 0.1)]
    [1.0, 0.099]

    Args:
        layout: Layout of the model.
        density: Density of the weights, in (0, 1].
    """
    weights = is_weight(layout)
    densities = np.ones(len(weights))
    shapes = [spec.shape for spec, weight in zip(layout.parameters, weights, strict=True) if weight]
    densities[weights] = erk(shapes, density)
    return [float(each) for each in densities]


def counts(layout: Layout, density: float, scope: Scope = "layer") -> list[int]:
    """Return the number of entries of each tensor that a mask of this density keeps, at least one.

    Args:
        layout: Layout of the model, whose own mask is ignored.
        density: Density of the weights, 0 < density <= 1.
        scope: "layer" or "erk".
    """
    check_density(density)
    densities = erk_densities(layout, density) if scope == "erk" else [density] * len(layout.parameters)
    return [
        max(1, round(kept * spec.size)) if weight else spec.size
        for spec, weight, kept in zip(layout.parameters, is_weight(layout), densities, strict=True)
    ]


def random_mask(layout: Layout, density: float, seed: int, scope: Scope = "erk") -> Mask:
    """Return a random mask, by default with ERK densities.

    Args:
        layout: Layout of the model.
        density: Density of the weights, 0 < density <= 1.
        seed: Seed; equal seeds give equal masks.
        scope: "layer" or "erk".
    """
    draw = np.random.default_rng(seed)
    scores = draw.random(layout.full.size)
    return by_counts(scores, layout, counts(layout, density, scope))


def by_counts(scores: NDArray[Any], layout: Layout, wanted: Sequence[int]) -> Mask:
    """Return the mask of the entries with the largest scores in each tensor; ties by lowest position.

    Args:
        scores: Score of each entry of the vector without a mask, (n,).
        layout: Layout of the model.
        wanted: Number of entries that each tensor keeps.
    """
    flags = np.zeros(layout.full.size, np.bool_)
    offsets = layout.full.offsets.tolist()
    for start, stop, k in zip(offsets[:-1], offsets[1:], wanted, strict=True):
        flags[start + top(scores[start:stop], k)] = True
    return Mask.of(flags)


def ranked(scores: NDArray[Any], layout: Layout, density: float, scope: Scope) -> Mask:
    """Return the mask of the weights with the largest scores, and of all other parameters.

    Args:
        scores: Score of each entry of the vector without a mask, (n,), of any sign.
        layout: Layout of the model.
        density: Density of the weights, 0 < density <= 1.
        scope: Ranking over all tensors or within each.

    Raises:
        LayerCollapse: With scope "global", a tensor would lose all of its weights.
        ValueError: The density is out of range, or a score is NaN.
    """
    check_density(density)
    if np.isnan(scores).any():
        raise ValueError("a score is NaN, so weights cannot be ranked; is a weight or the loss not finite?")
    if scope != "global":
        return by_counts(scores, layout, counts(layout, density, scope))
    offsets, weights = layout.full.offsets, is_weight(layout)
    flags = np.repeat(~weights, np.diff(offsets))
    candidates = np.flatnonzero(~flags)
    flags[candidates[top(scores[candidates], max(1, round(density * len(candidates))))]] = True
    mask = Mask.of(flags)
    left = np.diff(layout.within(mask).offsets)
    empty = [spec.name for spec, k, weight in zip(layout.parameters, left, weights, strict=True) if weight and not k]
    if empty:
        raise LayerCollapse(
            f"at density {density:g} nothing would be left of {', '.join(empty)}; raise the density, or rank with scope"
            " erk or layer in place of global"
        )
    return mask


def top(scores: NDArray[Any], k: int) -> Positions:
    """Return the positions of the k largest scores in ascending order; ties by lowest position.

    >>> top(np.array([1, 3, -2, 3, 3]), 2).tolist()
    [1, 3]

    Args:
        scores: Scores (n,).
        k: Number of positions; clipped to 0 and n.
    """
    if k >= len(scores):
        return np.arange(len(scores))
    if k <= 0:
        return np.empty(0, np.int64)
    bound = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = scores > bound
    above[np.flatnonzero(scores == bound)[: k - np.count_nonzero(above)]] = True
    return np.flatnonzero(above)


def cubic_density(round: int, begin: int, end: int, density: float) -> float:
    """Return the density after a round of the cubic schedule (Zhu and Gupta 2018, section 3).

    The difference to the final density falls as the cube of the remaining time: fast at first.

    >>> [round(cubic_density(number, 10, 50, 0.1), 3) for number in (9, 10, 20, 30, 50, 60)]
    [1.0, 1.0, 0.48, 0.213, 0.1, 0.1]

    Args:
        round: Number of the round.
        begin: Round before which the model is dense.
        end: Round from which it has the final density.
        density: Final density, in (0, 1].
    """
    if round < begin:
        return 1.0
    left = max(0.0, 1 - (round - begin) / max(1, end - begin))
    return density + (1 - density) * left**3


def cosine_fraction(round: int, end: int, fraction: float) -> float:
    """Return the fraction of a tensor's weights that is dropped and grown in a round.

    Evci et al. 2020, section 3 (2): alpha / 2 (1 + cos(t pi / T_end)).

    >>> [round(cosine_fraction(number, 100, 0.3), 3) for number in (0, 50, 100, 110)]
    [0.3, 0.15, 0.0, 0.0]

    Args:
        round: Number of the round.
        end: Round from which nothing is dropped.
        fraction: Fraction at round 0.
    """
    return 0.0 if round >= end else fraction / 2 * (1 + math.cos(math.pi * round / end))


def changes(layout: Layout, fraction: float) -> list[int]:
    """Return the number of weights of each tensor to exchange, at most as many as are outside the mask.

    Args:
        layout: Layout with the mask.
        fraction: Fraction of each tensor's kept weights.
    """
    kept, whole = np.diff(layout.offsets), np.diff(layout.full.offsets)
    return [
        int(min(round(fraction * k), n - k)) if weight else 0
        for k, n, weight in zip(kept.tolist(), whole.tolist(), is_weight(layout), strict=True)
    ]


def drop_and_grow(weights: Vector, gradient: Vector, layout: Layout, drop: float, grow: float) -> Mask:
    """Return a mask without the smallest weights of each tensor, and with those of the largest gradients.

    RigL's criterion (Evci et al. 2020, section 3 (3) and (4)), layer by layer: drop by magnitude within the mask, grow
    by the gradient's magnitude outside. A dropped weight does not grow in the same round.

    Args:
        weights: Weights within the mask, float32 (n,).
        gradient: Gradient of all entries, also outside the mask, float32 (n of the full layout,).
        layout: Layout with the current mask.
        drop: Fraction of each tensor's weights to drop, 0 to 1.
        grow: Fraction of each tensor's weights to grow; equal to `drop`, it keeps the density.

    Raises:
        ValueError: The layout has no mask.
    """
    if layout.mask is None:
        raise ValueError("drop and grow needs a model with a mask, but this one is dense: set its density below 1")
    flags = layout.mask.flags.copy()
    offsets, whole = layout.offsets.tolist(), layout.full.offsets.tolist()
    for index, (dropped, grown) in enumerate(zip(changes(layout, drop), changes(layout, grow), strict=True)):
        inside, tensor = slice(offsets[index], offsets[index + 1]), slice(whole[index], whole[index + 1])
        smallest = top(-np.abs(weights[inside]), dropped)
        flags[layout.mask.positions[inside][smallest]] = False
        outside = np.where(layout.mask.flags[tensor], -1.0, np.abs(gradient[tensor]))
        flags[tensor.start + top(outside, grown)] = True
    return Mask.of(flags)
