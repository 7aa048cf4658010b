"""Which weights a sparse model has while it trains: densities by layer, pruning as it goes, drop and grow.

Weights are the entries of tensors with two or more dimensions. Other parameters (biases, scales of norms) are few, and
every mask here holds all of them; a density is the part of the weights that is left.

U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, "Rigging the Lottery: Making All Tickets Winners", ICML 2020:
    RigL's drop and grow with its cosine, and ERK densities, section 3.
D. C. Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science", Nature Communications 2018: the Erdős-Rényi densities that ERK extends to kernels.
M. Zhu, S. Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", ICLR workshop
    2018, section 3: the cubic schedule.

Nothing here needs torch; scores that need gradients are in `initial_mask`.
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
"""How weights compete: all with all; those of a tensor among themselves, every tensor with the same density; the same
with ERK densities."""


Method = Literal["snip", "grasp", "synflow", "erk", "magnitude"]
"""Ways to find a mask before anything is trained (`at_initialization.initial_mask`)."""


@dataclass(frozen=True, config=STRICT)
class MaskSize(Settings):
    """How many weights a mask has, and who competes for them."""

    density: Fraction = Field(
        default=0.1, kw_only=True, description="Share of the weights that is left; biases and the like all are."
    )
    scope: Scope | None = Field(
        default=None,
        kw_only=True,
        json_schema_extra=ADVANCED,
        description="Who competes: all weights, those of a layer (each with the same density), or those of a layer with"
        " ERK densities. null: erk for erk, feddst and rigl, layer for gradual, else global.",
    )


@dataclass(frozen=True, config=STRICT)
class AtInitialization(MaskSize):
    """How a mask is found before anything is trained (`at_initialization.initial_mask`).

    Raises:
        ValueError: A value is unknown or out of range, or the scope is not one of the method.
    """

    method: Method = Field(
        default="snip", description="snip, grasp, synflow, erk (drawn at random with ERK densities) or magnitude."
    )
    steps: int = Field(default=100, ge=1, description="Of synflow, which prunes bit by bit.")
    temperature: Positive = Field(
        default=200.0,
        description="Of grasp: the answers are divided by it before the loss, as the authors' code does.",
    )
    batch_size: int = Field(
        default=500,
        ge=1,
        description="Examples whose gradients are taken at a time; the scores do not depend on it, but for rounding.",
    )

    def __post_init__(self) -> None:
        if self.method == "erk" and self.scope == "global":
            raise ValueError("scope global has no meaning for method erk, whose densities are by layer")


class LayerCollapse(FedpressError, ValueError):
    """A mask would leave a tensor without a single weight: nothing would come through that layer."""


def check_density(density: float) -> None:
    """Raise ValueError unless 0 < density <= 1."""
    if not 0 < density <= 1:
        raise ValueError(
            f"the mask's density is {density}, expected 0 < density <= 1, such as 0.1 for a tenth of the weights"
        )


def is_weight(layout: Layout) -> NDArray[np.bool_]:
    """Return for each tensor of the layout whether it may lose entries: bool, shape (tensors,)."""
    return np.array([len(spec.shape) >= 2 and spec.size > 0 for spec in layout.parameters], np.bool_)


def density(mask: Mask | None, layout: Layout) -> float:
    """Return the part of the weights that a mask leaves; 1 without a mask, or where there are no weights."""
    whole, left = np.diff(layout.full.offsets), np.diff(layout.within(mask).offsets)
    weights = is_weight(layout)
    return float(left[weights].sum() / whole[weights].sum()) if whole[weights].sum() else 1.0


def erk(shapes: Sequence[tuple[int, ...]], density: float) -> list[float]:
    """Return Erdős–Rényi-kernel densities: of each tensor in proportion to the sum of its dimensions by their product.

    A tensor that would be more than dense is dense, and the others share what is left.

    >>> erk([(100, 100), (10, 10)], 0.2)
    [0.192, 1.0]

    Args:
        shapes: Of the weights, (outputs, inputs, kernel ...).
        density: Of all of them together, in (0, 1].
    """
    check_density(density)
    sizes = np.array([math.prod(shape) for shape in shapes], np.float64)
    raw = np.array([sum(shape) / max(1, math.prod(shape)) for shape in shapes])
    found, below = np.ones(len(sizes)), np.ones(len(sizes), bool)
    while below.any():
        factor = (density * sizes.sum() - sizes[~below].sum()) / (raw * sizes)[below].sum()
        too_dense = below & (factor * raw > 1)
        if not too_dense.any():
            found[below] = np.maximum(0.0, factor * raw[below])
            break
        below &= ~too_dense
    return [float(one) for one in found]


def erk_densities(layout: Layout, density: float) -> list[float]:
    """Return the density of each tensor as `erk` has it; tensors that are no weights have 1.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> specs = TensorSpec("conv", (16, 1, 3, 3), "float32"), TensorSpec("head", (100, 2000), "float32")
    >>> [round(one, 3) for one in erk_densities(Layout(specs), 0.1)]
    [1.0, 0.099]
    """
    weights = is_weight(layout)
    found = np.ones(len(weights))
    found[weights] = erk([spec.shape for spec, one in zip(layout.parameters, weights, strict=True) if one], density)
    return [float(one) for one in found]


def counts(layout: Layout, density: float, scope: Scope = "layer") -> list[int]:
    """Return how many entries of each tensor a mask of this density leaves; a weight keeps at least one.

    Args:
        layout: Of the model; its own mask plays no part.
        density: Of the weights, 0 < density <= 1.
        scope: "layer" or "erk".
    """
    check_density(density)
    densities = erk_densities(layout, density) if scope == "erk" else [density] * len(layout.parameters)
    return [
        max(1, round(own * spec.size)) if weight else spec.size
        for spec, weight, own in zip(layout.parameters, is_weight(layout), densities, strict=True)
    ]


def random_mask(layout: Layout, density: float, seed: int, scope: Scope = "erk") -> Mask:
    """Return a mask drawn at random, with ERK densities unless told otherwise.

    Args:
        layout: Of the model.
        density: Of the weights, 0 < density <= 1.
        seed: Draws it; the same seed, the same mask.
        scope: As for `counts`.
    """
    draw = np.random.default_rng(seed)
    scores = draw.random(layout.full.size)
    return by_counts(scores, layout, counts(layout, density, scope))


def by_counts(scores: NDArray[Any], layout: Layout, wanted: Sequence[int]) -> Mask:
    """Return the mask of the entries with the largest scores of each tensor; ties by lowest position.

    Args:
        scores: One for each entry of the vector without a mask, shape (n,).
        layout: Of the model.
        wanted: How many entries each tensor keeps.
    """
    flags = np.zeros(layout.full.size, np.bool_)
    offsets = layout.full.offsets.tolist()
    for start, stop, k in zip(offsets[:-1], offsets[1:], wanted, strict=True):
        flags[start + top(scores[start:stop], k)] = True
    return Mask.of(flags)


def ranked(scores: NDArray[Any], layout: Layout, density: float, scope: Scope) -> Mask:
    """Return the mask of the weights with the largest scores, and of all that is no weight.

    Args:
        scores: One for each entry of the vector without a mask, (n,); the larger, the sooner kept. May be negative.
        layout: Of the model.
        density: Of the weights, 0 < density <= 1.
        scope: Who competes with whom.

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
    """Return the places of the k largest scores, rising; ties by lowest place.

    >>> top(np.array([1, 3, -2, 3, 3]), 2).tolist()
    [1, 3]
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
    """Return the density after a round: 1 before `begin`, from there down to `density` at `end`, fast at first.

    Zhu and Gupta 2018, section 3: the part that is missing falls as the cube of the time that is left.

    >>> [round(cubic_density(number, 10, 50, 0.1), 3) for number in (9, 10, 20, 30, 50, 60)]
    [1.0, 1.0, 0.48, 0.213, 0.1, 0.1]
    """
    if round < begin:
        return 1.0
    left = max(0.0, 1 - (round - begin) / max(1, end - begin))
    return density + (1 - density) * left**3


def cosine_fraction(round: int, end: int, fraction: float) -> float:
    """Return the part of a tensor's weights that is dropped and grown in a round: `fraction` at 0, nothing from `end`.

    Evci et al. 2020, section 3 (2): alpha / 2 (1 + cos(t pi / T_end)).

    >>> [round(cosine_fraction(number, 100, 0.3), 3) for number in (0, 50, 100, 110)]
    [0.3, 0.15, 0.0, 0.0]
    """
    return 0.0 if round >= end else fraction / 2 * (1 + math.cos(math.pi * round / end))


def changes(layout: Layout, fraction: float) -> list[int]:
    """Return how many weights of each tensor are exchanged: `fraction` of those that it has, if as many are missing."""
    have, whole = np.diff(layout.offsets), np.diff(layout.full.offsets)
    return [
        int(min(round(fraction * k), n - k)) if weight else 0
        for k, n, weight in zip(have.tolist(), whole.tolist(), is_weight(layout), strict=True)
    ]


def drop_and_grow(weights: Vector, gradient: Vector, layout: Layout, drop: float, grow: float) -> Mask:
    """Return a mask without the smallest weights of each tensor, and with those whose gradient is largest.

    RigL's criterion (Evci et al. 2020, section 3 (3) and (4)), layer by layer: drop by magnitude within the mask, grow
    by the gradient's magnitude outside. What is dropped does not grow at once.

    Args:
        weights: Of the mask's entries, float32, shape (n,).
        gradient: Of all entries, those outside the mask too, float32, shape (full n,).
        layout: With the mask as it is.
        drop: Part of each tensor's weights that is dropped, 0 to 1.
        grow: Part of each tensor's weights that is grown; as many as `drop` keeps the density.

    Raises:
        ValueError: The layout has no mask.
    """
    if layout.mask is None:
        raise ValueError("drop and grow needs a model with a mask; this one has all of its weights")
    flags = layout.mask.flags.copy()
    offsets, whole = layout.offsets.tolist(), layout.full.offsets.tolist()
    for index, (dropped, grown) in enumerate(zip(changes(layout, drop), changes(layout, grow), strict=True)):
        inside, tensor = slice(offsets[index], offsets[index + 1]), slice(whole[index], whole[index + 1])
        smallest = top(-np.abs(weights[inside]), dropped)
        flags[layout.mask.positions[inside][smallest]] = False
        outside = np.where(layout.mask.flags[tensor], -1.0, np.abs(gradient[tensor]))
        flags[tensor.start + top(outside, grown)] = True
    return Mask.of(flags)
