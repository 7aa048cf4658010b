"""Importance of single weights, and of channels with everything that depends on them; the least important go first.

| importance | of a weight | of a channel, neuron, head |
|---|---|---|
| `l1` | abs(w) [1] | sum of abs(w) over all that depends on it [2] |
| `l2` | w^2, the same order | sum of w^2 over all that depends on it [2] |
| `taylor` | abs(w * gradient) [3] | sum of it over all that depends on it |
| `lamp` | w^2 by the sum of all w^2 of the layer that are no smaller [4] | the same, of the channels' sums |
| `wanda` | abs(w) * root mean square of its input [5] | sum of it over all that depends on it |
| `random` | a random number: the baseline | the same |

All that depends on a channel: its rows and columns of convolutions and linear layers and its scales of norms, but not
biases and embeddings. Of layers of one's own kind, and of torch's multi-head attention, matrices count.

[1] S. Han, J. Pool, J. Tran, W. Dally, "Learning both Weights and Connections for Efficient Neural Networks", NIPS
    2015.
[2] H. Li, A. Kadav, I. Durdanovic, H. Samet, H. P. Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017; over the
    whole group: G. Fang et al., "DepGraph: Toward Any Structural Pruning", CVPR 2023, section 3.3.
[3] P. Molchanov, A. Mallya, S. Tyree, I. Frosio, J. Kautz, "Importance Estimation for Neural Network Pruning", CVPR
    2019, section 3.1: first order. Magnitudes of batches' gradients are averaged, as their mean vanishes at an optimum.
[4] J. Lee, S. Park, S. Mo, S. Ahn, J. Shin, "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021.
[5] M. Sun, Z. Liu, A. Bair, J. Z. Kolter, "A Simple and Effective Pruning Approach for Large Language Models", ICLR
    2024, section 3: on calibration data, without labels or gradients. Single weights are compared within each output.
    Weights that no product with the data reaches count with inputs of size 1.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fedpress.compression.models import architecture, calibration
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.calibration import Site
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.models.outputs import fitted
from fedpress.compression.models.pruning.channel_groups import Group
from fedpress.compression.models.pruning.settings import Importance, Pruning, Ranking, Tracing
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.task import Examples, Task

IMPORTANCES: Final[tuple[str, ...]] = get_args(Importance)
RANKINGS: Final[tuple[str, ...]] = get_args(Ranking)

Gradients = Mapping[str, Tensor]
"""Mean over batches of the gradient's magnitude of each parameter, by name."""
Norms = Mapping[str, Sequence[tuple[Site, Tensor]]]
"""Root mean squares of the inputs, float32 (groups, inputs), of each matrix of a parameter, by its name."""

_log = logging.getLogger(__name__)


class Criterion(NamedTuple):
    """What is removed, in which order.

    Attributes:
        importance: One of `IMPORTANCES`.
        ranking: `uniform`: within each layer, all of which keep the same fraction; `global`: across layers; `erk`:
            within each layer at its Erdős–Rényi-kernel density (single weights only, `weights.erk`).
        gradients: Gradients of this model for `taylor`, as `gradients` returns them.
        seed: Seed for `random`.
        tracing: Layers to ignore, and the time for following channels.
        norms: Inputs of this model's weights for `wanda`, as `norms` returns them.
    """

    importance: str = "l2"
    ranking: str = "uniform"
    gradients: Gradients | None = None
    seed: int = 0
    tracing: Tracing = Tracing()
    norms: Norms | None = None

    def check(self) -> None:
        """Check that the criterion is complete.

        Raises:
            ValueError: The importance or ranking is unknown, gradients are missing for `taylor`, or norms for `wanda`.
        """
        if self.importance not in IMPORTANCES:
            raise ValueError(f"importance must be one of {', '.join(IMPORTANCES)}, got {self.importance!r}")
        if self.ranking not in RANKINGS:
            raise ValueError(f"ranking must be one of {', '.join(RANKINGS)}, got {self.ranking!r}")
        if self.importance == "taylor" and self.gradients is None:
            raise ValueError("importance 'taylor' needs gradients, got none: see importance.gradients")
        if self.importance == "wanda" and self.norms is None:
            raise ValueError("importance 'wanda' needs the norms of inputs, got none: see importance.norms")


DEFAULT: Final = Criterion()


def of_settings(
    settings: Pruning, gradients: Gradients | None = None, seed: int = 0, norms: Norms | None = None
) -> Criterion:
    """Return the criterion of settings.

    Args:
        settings: Order of removal, and the layers to ignore.
        gradients: Gradients of the model for `taylor`, as `gradients` returns them.
        seed: Seed for `random`.
        norms: Inputs of the model's weights for `wanda`, as `norms` returns them.
    """
    return Criterion(settings.importance, settings.ranking, gradients, seed, settings, norms)


def named(settings: Pruning) -> Criterion:
    """Return the default order of removal for models without trained weights, with the layers that settings ignore.

    Args:
        settings: Settings that name the layers.
    """
    return DEFAULT._replace(tracing=settings)


COUNTED: Final = (_ConvNd, nn.Linear, _NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Layers whose weights make a channel important; embeddings, of a row a word, would outweigh all others."""


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
            inputs, targets = examples.batch(slice(start, start + batch_size))
            outputs = model_inputs.call(probe, inputs)
            slopes = torch.autograd.grad(
                task.loss(outputs, fitted(targets, outputs, inputs)), list(parameters.values()), allow_unused=True
            )
            for name, gradient in zip(parameters, slopes, strict=True):
                if gradient is not None:
                    sums[name] += gradient.abs()
        return {name: total / len(starts) for name, total in sums.items()}


def norms(model: nn.Module, inputs: Inputs) -> Norms:
    """Return the root mean squares of the inputs of the model's weights, on calibration data.

    Args:
        model: The model; left as it is.
        inputs: Calibration inputs, of N >= 1 examples.

    Raises:
        ValueError: There are no examples.
        NonFiniteError: The inputs of a weight hold NaN or infinity.
    """
    found: dict[str, list[tuple[Site, Tensor]]] = {}

    def visit(site: Site, weight: Tensor, moments: Tensor) -> None:
        found.setdefault(site.name, []).append((site, moments.diagonal(dim1=1, dim2=2).sqrt().float()))

    with reproducible(0):
        reached = calibration.calibrate(copy.deepcopy(model).cpu(), inputs, visit)
    if reached.unreached:
        _log.warning("wanda: no product with the data reaches %s: ranked by magnitude", ", ".join(reached.unreached))
    return found


def of_units(model: nn.Module, groups: Sequence[Group], criterion: Criterion) -> list[Tensor]:
    """Return the importance of each unit of each group, float32 (units,), normalized to mean 1.

    With `lamp` and `random` the scores are not normalized.

    Args:
        model: The model.
        groups: Groups of the model, as `channel_groups.find` returns them.
        criterion: Importance, and for `taylor` the gradients.
    """
    if criterion.importance == "random":
        with reproducible(criterion.seed):
            return [torch.rand(group.units) for group in groups]
    scores = {
        name: _scores(name, tensor.detach(), criterion)
        for path, module in model.named_modules()
        for name, tensor in _counted(path, module)
    }
    totals = [_total(group, scores) for group in groups]
    if criterion.importance == "lamp":
        return [_lamp(total) for total in totals]
    return [total / mean if (mean := total.mean()) > 0 else total for total in totals]


def _counted(path: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a layer that count: of kinds that torch does not have, and of attention, the matrices."""
    if isinstance(module, COUNTED):
        if isinstance(module.weight, Tensor):
            yield f"{path}.weight".lstrip("."), module.weight
    elif not isinstance(module, architecture.RESIZABLE):
        for name, parameter in module.named_parameters(path, recurse=False):
            if parameter.ndim == 2 and min(parameter.shape) > 1:
                yield name, parameter


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
            if criterion.importance == "lamp":
                scores[name] = _lamp(weight.square())
            elif criterion.importance == "random":
                scores[name] = torch.rand(weight.shape, generator=generator)
            else:
                scores[name] = _scores(name, weight, criterion)
        return scores


def _scores(name: str, weight: Tensor, criterion: Criterion) -> Tensor:
    """Return what each weight counts on its own, in the weight's shape."""
    if criterion.importance == "taylor":
        assert criterion.gradients is not None  # by the check
        return (weight * criterion.gradients[name]).abs()
    if criterion.importance == "wanda":
        assert criterion.norms is not None  # by the check
        sizes = torch.ones(weight.shape)
        for site, sizes_of_inputs in criterion.norms.get(name, ()):
            site.matrix(sizes).copy_(sizes_of_inputs[:, None].expand(site.size))
        return weight.abs() * sizes
    return weight.abs() if criterion.importance == "l1" else weight.square()


def _total(group: Group, scores: Mapping[str, Tensor]) -> Tensor:
    """Return the sum over all that depends on each unit, (units,)."""
    total = torch.zeros(group.units)
    for member in group.members:
        if member.tensor in scores:
            slices = scores[member.tensor].movedim(member.axis, 0)
            slices = slices.reshape(len(slices), -1).sum(1)
            total += slices[member.positions].sum(1)
    return total


def _lamp(squares: Tensor) -> Tensor:
    """Return equation 2 of [4]: each square divided by the sum of all squares that are no smaller."""
    ascending, order = squares.double().flatten().sort(stable=True)
    rest = ascending.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(ascending)
    scores[order] = torch.where(rest > 0, ascending / rest, 0)
    return scores.to(squares.dtype).reshape(squares.shape)
