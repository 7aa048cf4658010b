"""Importance of single weights, and of channels with everything that depends on them; the least important go first.

| importance | of a weight | of a channel, neuron, head (Torch-Pruning) |
|---|---|---|
| `l1` | abs(w) [1] | sum of abs(w) over its group [2] |
| `l2` | w^2, the same order | sum of w^2 over its group [2] |
| `taylor` | abs(w * gradient) [3] | sum of it over its group |
| `lamp` | w^2 by the sum of all w^2 of the layer that are no smaller [4] | the same, of the groups' sums |
| `random` | a random number: the baseline | the same |

[1] S. Han, J. Pool, J. Tran, W. Dally, "Learning both Weights and Connections for Efficient Neural Networks", NIPS
    2015.
[2] H. Li, A. Kadav, I. Durdanovic, H. Samet, H. P. Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017; over the
    whole group: G. Fang et al., "DepGraph: Toward Any Structural Pruning", CVPR 2023, section 3.3.
[3] P. Molchanov, A. Mallya, S. Tyree, I. Frosio, J. Kautz, "Importance Estimation for Neural Network Pruning", CVPR
    2019, section 3.1: first order. Magnitudes of batches' gradients are averaged, as their mean vanishes at an optimum.
[4] J. Lee, S. Park, S. Mo, S. Ahn, J. Shin, "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, get_args

import torch
import torch_pruning
from torch import Tensor, nn

from fedpress.compression.models.pruning.channel_groups import Group
from fedpress.compression.models.pruning.settings import Importance, Ranking
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.task import Examples, Task

IMPORTANCES: Final[tuple[str, ...]] = get_args(Importance)
RANKINGS: Final[tuple[str, ...]] = get_args(Ranking)

Gradients = Mapping[str, Tensor]
"""Mean over batches of the gradient's magnitude of each parameter, by name."""


class Criterion(NamedTuple):
    """Order of removal.

    Attributes:
        importance: One of `IMPORTANCES`.
        ranking: `uniform`: within each layer, all of which keep the same fraction; `global`: across layers; `erk`:
            within each layer at its Erdős–Rényi-kernel density (single weights only, `weights.erk`).
        gradients: Gradients of this model for `taylor`, as `gradients` returns them.
        seed: Seed for `random`.
    """

    importance: str = "l2"
    ranking: str = "uniform"
    gradients: Gradients | None = None
    seed: int = 0

    def check(self) -> None:
        """Check that the criterion is complete.

        Raises:
            ValueError: The importance or ranking is unknown, or gradients are missing for `taylor`.
        """
        if self.importance not in IMPORTANCES:
            raise ValueError(f"importance must be one of {', '.join(IMPORTANCES)}, got {self.importance!r}")
        if self.ranking not in RANKINGS:
            raise ValueError(f"ranking must be one of {', '.join(RANKINGS)}, got {self.ranking!r}")
        if self.importance == "taylor" and self.gradients is None:
            raise ValueError("importance 'taylor' needs gradients, got none: see importance.gradients")


DEFAULT: Final = Criterion()


def gradients(model: nn.Module, task: Task, examples: Examples, batch_size: int = 64) -> dict[str, Tensor]:
    """Return the mean over batches of the magnitude of the loss's gradient, by parameter name.

    Args:
        model: The model; run in evaluation mode, left as it is.
        task: Task that defines the loss.
        examples: Examples with labels or, where these are hidden, a teacher's answers as targets.
        batch_size: Examples whose gradients are averaged before the magnitude is taken.

    Raises:
        ValueError: There are no examples.
    """
    if len(examples.targets) == 0:
        raise ValueError("gradients: got 0 examples, expected at least 1; does the task hold out a proxy part?")
    with reproducible(0):
        probe = copy.deepcopy(model).cpu().eval()
        parameters = dict(probe.named_parameters())
        sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        starts = range(0, len(examples.targets), batch_size)
        for start in starts:
            inputs, targets = (part[start : start + batch_size] for part in examples)
            slopes = torch.autograd.grad(
                task.loss(probe(inputs), targets), list(parameters.values()), allow_unused=True
            )
            for name, gradient in zip(parameters, slopes, strict=True):
                if gradient is not None:
                    sums[name] += gradient.abs()
        return {name: total / len(starts) for name, total in sums.items()}


def of_units(groups: list[Group], criterion: Criterion) -> list[Tensor]:
    """Return the importance of each unit of each group, float32 (units,); normalized to mean 1 by Torch-Pruning.

    With `lamp` and `random` the scores are not normalized.

    Args:
        groups: Groups of a model, as `channel_groups.find` returns them.
        criterion: Importance; for `taylor`, gradients are read from the parameters' `grad`.
    """
    scorer = _scorer(criterion.importance)
    with reproducible(criterion.seed):
        return [scorer(group.members)[group.units].mean(dim=1) for group in groups]


def of_weights(weights: Mapping[str, Tensor], criterion: Criterion) -> dict[str, Tensor]:
    """Return the importance of each single weight, by name, in the shapes of `weights`.

    >>> of_weights({"a": torch.tensor([[1.0, -2.0]])}, Criterion("lamp"))["a"]    # 1 of 1 + 4, 4 of 4
    tensor([[0.2000, 1.0000]])

    Args:
        weights: Weights by name.
        criterion: Importance.
    """
    criterion.check()
    with reproducible(criterion.seed) as generator:
        scores = {}
        for name, weight in weights.items():
            if criterion.importance == "taylor":
                assert criterion.gradients is not None  # by the check
                scores[name] = (weight * criterion.gradients[name]).abs()
            elif criterion.importance == "lamp":
                scores[name] = _lamp(weight)
            elif criterion.importance == "random":
                scores[name] = torch.rand(weight.shape, generator=generator)
            else:
                scores[name] = weight.abs() if criterion.importance == "l1" else weight.square()
        return scores


def _lamp(weight: Tensor) -> Tensor:
    """Return equation 2 of [4]: each square divided by the sum of all squares that are no smaller."""
    squares, order = weight.double().flatten().square().sort(stable=True)
    rest = squares.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = torch.where(rest > 0, squares / rest, 0)
    return scores.to(weight.dtype).reshape(weight.shape)


def _scorer(importance: str) -> Any:
    """Return Torch-Pruning's implementation; `taylor` reads the parameters' `grad`."""
    library = torch_pruning.importance
    if importance == "taylor":
        return library.GroupTaylorImportance()
    if importance == "lamp":
        return library.LAMPImportance()
    if importance == "random":
        return library.RandomImportance()
    return library.GroupMagnitudeImportance(p=1 if importance == "l1" else 2)
