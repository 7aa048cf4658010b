"""Structural pruning: removal of channels, neurons and heads, which leaves an ordinary smaller model.

`channel_groups` finds what must be removed together, and tries whether it can be. By default every layer keeps the same
fraction of its channels, and attention of its heads: those with the largest L2 norm of the whole group, after H. Li, A.
Kadav, I. Durdanovic, H. Samet, H. P. Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017. Other orders are in
`importance`; fractions may differ by layer (`layers_of`). Bisection over the fraction meets a budget; where the units
are coarse, as are heads, the room that it leaves is filled unit by unit, the most important first.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import flop_counter

from fedpress.compression.errors import FedpressError
from fedpress.compression.models import architecture
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.pruning import channel_groups, importance
from fedpress.compression.models.pruning.channel_flow import PruneError as PruneError
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.reproducible import evaluating

BISECTIONS = 12
"""Halvings of the interval of kept fractions, to one channel of 4,096."""
FULL: Final = 0.995
"""Part of a budget from which on it counts as used up."""
COARSE: Final = 0.98
"""Part of a budget below which a warning says that units are too coarse to use it up."""
MOST_UNITS: Final = 400
"""Most units that are tried one by one to use a budget up."""

_log = logging.getLogger(__name__)


class BudgetError(FedpressError, ValueError):
    """The budget cannot be met, even with one channel left in every layer."""


def parameters_of(model: nn.Module) -> int:
    """Return the number of parameters of a model, tied ones once, without buffers."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_of(model: nn.Module, example_input: Batch) -> int:
    """Return the floating-point operations of one forward pass of one example; a multiply-add counts as two.

    Matrix products, convolutions and attention are counted, by torch's own counter; element-wise operations
    (activations, norms, pooling) are not.

    >>> flops_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(16, 4))
    96

    Args:
        model: The model; run once in evaluation mode, left as it is.
        example_input: Inputs in memory, of N examples, of which the first is used.
    """
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _recurrent})
    # The CPU's fused attention is unknown to the counter; unfused, it is matrix products.
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), counter:
        model_inputs.call(model, model_inputs.first(example_input))
    return int(counter.get_total_flops())


def _recurrent(
    inputs: tuple[int, ...], weight_ih: tuple[int, ...], weight_hh: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """Return the FLOPs of one direction of a recurrent layer (oneDNN's fused kernel), from its arguments' shapes."""
    return 2 * math.prod(inputs[:-1]) * (math.prod(weight_ih) + math.prod(weight_hh))


def prune_to(
    model: nn.Module,
    example_input: Batch,
    parameters: int,
    ignored: Collection[nn.Module] = (),
    criterion: Criterion = importance.DEFAULT,
) -> nn.Module:
    """Return the largest pruned version of a model with at most a number of parameters.

    >>> model = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2))
    >>> small = prune_to(model, torch.zeros(1, 4), 72)
    >>> parameters_of(small), small[0].out_features
    (72, 10)

    Args:
        model: Model that autograd can trace, whose output layers keep their size; untouched.
        example_input: Inputs in memory, of N examples.
        parameters: Largest number of parameters.
        ignored: Layers of `model` whose own channels are kept.
        criterion: Order of removal.

    Raises:
        BudgetError: Even the smallest version has more parameters.
        PruneError: The pruned model does not run, or its outputs have another shape.
    """
    return prune_while(
        model,
        example_input,
        parameters_of,
        parameters,
        f"{parameters:,} parameters",
        ignored,
        criterion,
    )


def prune_while(
    model: nn.Module,
    example_input: Batch,
    cost: Callable[[nn.Module], float],
    limit: float,
    budget: str,
    ignored: Collection[nn.Module] = (),
    criterion: Criterion = importance.DEFAULT,
) -> nn.Module:
    """Return the largest pruned version of a model within a budget, by bisection over the fraction of channels kept.

    All layers keep the same fraction, up to the units that fill what bisection leaves of the budget. A warning says
    where less than 98 % of it is used.

    Args:
        model: Model that autograd can trace, whose output layers keep their size; untouched.
        example_input: Inputs in memory, of N examples.
        cost: Cost of a model of the right shapes, whose weights are any; monotonic: smaller models cost no more.
        limit: Largest cost.
        budget: Description of the budget, for the error.
        ignored: Layers of `model` whose own channels are kept.
        criterion: Order of removal.

    Raises:
        BudgetError, PruneError: As for `prune_to`.
    """
    if cost(model) <= limit:
        return channel_groups.copied(model)
    pruner = Pruner(model, example_input, ignored, criterion)
    with pruner.measured(0.0) as smallest:
        if cost(smallest) > limit:
            raise BudgetError(
                f"a student within {budget} is impossible: with one channel left in every layer that can be pruned,"
                f" this model of {parameters_of(model):,} parameters still has {parameters_of(smallest):,}; layers kept"
                f" whole: {_whole(model, smallest) or 'none'}. Raise the budget, or give the task a smaller model"
            )
    counts, used = pruner.largest(cost, limit)
    if used < COARSE * limit:
        _log.warning(
            "a student within %s uses %.1f %% of it: one more unit of any layer (channel, column or head) is too much",
            budget,
            100 * used / limit,
        )
    return pruner.keep_counts(counts)


def layers_of(model: nn.Module, example_input: Batch, ignored: Collection[nn.Module] = ()) -> dict[str, int]:
    """Return the prunable layers by name, in the model's order, with their numbers of channels or heads.

    Layers that must keep the same channels, such as both ends of a residual connection, are represented by the first.

    >>> layers_of(nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2)), torch.zeros(1, 4))
    {'0': 100}

    Args:
        model: The model; untouched.
        example_input: Inputs in memory, of N examples.
        ignored: Layers of `model` whose own channels are kept.

    Raises:
        PruneError: The model cannot be pruned.
    """
    return Pruner(model, example_input, ignored).layers


def keep_fraction(
    model: nn.Module,
    example_input: Batch,
    fraction: float | Mapping[str, float],
    ignored: Collection[nn.Module] = (),
    criterion: Criterion = importance.DEFAULT,
) -> nn.Module:
    """Return a model that keeps a fraction of the channels and attention heads of every layer, at least one each.

    With a global ranking it is the fraction of all of them together.

    Args:
        model: Model that autograd can trace, whose output layers keep their size; untouched.
        example_input: Inputs in memory, of N examples.
        fraction: Fraction of the channels in [0, 1] (parameters fall by about its square); or a fraction for each
            layer, by name as in `layers_of`, without which a layer stays whole.
        ignored: Layers of `model` whose own channels are kept.
        criterion: Order of removal.

    Raises:
        PruneError: As for `prune_to`, or a fraction is given for a layer that cannot be pruned.
        ValueError: The criterion is not defined for channels, or ranks across layers with a fraction each.
    """
    return Pruner(model, example_input, ignored, criterion).keep(fraction)


class Pruner:
    """All pruned versions of a model, by one order of removal; its channels are followed once.

    Args:
        model: Model whose output layers keep their size; untouched, and not to be changed while this is used.
        example_input: Inputs in memory; or a tuple of arguments.
        ignored: Layers of `model` whose own channels are kept, besides those that the criterion names.
        criterion: Order of removal.

    Attributes:
        layers: Prunable layers by name, in the model's order, with their numbers of channels or heads.

    Raises:
        PruneError: The model cannot be pruned.
        ValueError: The criterion is not defined for channels.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Batch,
        ignored: Collection[nn.Module] = (),
        criterion: Criterion = importance.DEFAULT,
    ) -> None:
        criterion.check()
        if criterion.ranking == "erk":
            raise ValueError(
                "ranking 'erk' gives densities of single weights, it is not defined for channels; see `weights`"
            )
        self._model, self._example, self._criterion = model, example_input, criterion
        self._trials = channel_groups.Trials(
            model, example_input, (*ignored, *criterion.tracing.ignored), criterion.tracing.trace_seconds
        )
        self._groups = self._trials.groups
        if criterion.tracing.width == "keep":
            blocks = _blocks(model)
            self._groups = [group for group in self._groups if not _spans(group, blocks)]
        self.layers = {group.name: group.units for group in reversed(self._groups)}

    @functools.cached_property
    def _scores(self) -> list[Tensor]:
        on_cpu = all(parameter.device.type == "cpu" for parameter in self._model.parameters())
        model = self._model if on_cpu else channel_groups.copied(self._model)
        return importance.of_units(model, self._groups, self._criterion)

    @functools.cached_property
    def _orders(self) -> list[Tensor]:
        """Units of each group, the least important first."""
        return [score.argsort(stable=True) for score in self._scores]

    @functools.cached_property
    def _measured(self) -> nn.Module:
        """A copy with weights of zero, which take no memory before they are used."""
        model = channel_groups.copied(self._model)
        for parameter in model.parameters():
            parameter.data = torch.zeros(parameter.shape, dtype=parameter.dtype)
        return model

    @contextmanager
    def measured(self, fraction: float | Mapping[str, float]) -> Iterator[nn.Module]:
        """Run a block with a model of the shapes that `keep` returns and weights of zero, to be measured only.

        Args:
            fraction: Fraction of the channels, or one for each layer.

        Yields:
            The model, which is whole again after the block.

        Raises:
            PruneError, ValueError: As for `keep_fraction`.
        """
        with self._measured_at(self.counts(fraction)) as model:
            yield model

    @contextmanager
    def _measured_at(self, counts: Sequence[int]) -> Iterator[nn.Module]:
        with channel_groups.without(self._measured, self._removal(counts), hollow=True):
            yield self._measured

    def keep(self, fraction: float | Mapping[str, float]) -> nn.Module:
        """Return the model with a fraction of its channels and heads, as `keep_fraction` does.

        Args:
            fraction: Fraction of the channels, or one for each layer.

        Raises:
            PruneError, ValueError: As for `keep_fraction`.
        """
        return self.keep_counts(self.counts(fraction))

    def keep_counts(self, counts: Sequence[int]) -> nn.Module:
        """Return the model without the least important units of each group.

        Args:
            counts: How many of each group, as `counts` returns them.

        Raises:
            PruneError: The pruned model does not run, or answers otherwise.
        """
        removal = self._removal(counts)
        if error := self._trials.error(removal):
            raise PruneError(
                f"layers {', '.join(self._trials.culprits(removal))} cannot be made that small: {error}."
                f" {channel_groups.HINT}"
            )
        pruned = channel_groups.copied(self._model)
        channel_groups.cut(pruned, removal)
        for parameter in pruned.parameters():
            parameter.grad = None
        return pruned

    def largest(self, cost: Callable[[nn.Module], float], limit: float) -> tuple[list[int], float]:
        """Return how many units of each group go for the largest model within a budget, and its cost.

        All groups keep the same fraction, by bisection, and what that leaves of the budget is filled. If units are too
        coarse for it (a head that takes a part of the width with it), one of them stays, and the others make room.

        Args:
            cost: Cost of a model of the right shapes, whose weights are any.
            limit: Largest cost, within which the smallest model is.
        """
        best = self._bisected(cost, limit, {})
        for number in sorted(range(len(self._groups)), key=lambda number: self._groups[number].units):
            if best[1] >= COARSE * limit or self._criterion.ranking == "global":
                break
            if count := best[0][number]:
                best = max(best, self._bisected(cost, limit, {number: count - 1}), key=lambda found: found[1])
        return best

    def _bisected(
        self, cost: Callable[[nn.Module], float], limit: float, fixed: Mapping[int, int]
    ) -> tuple[list[int], float]:
        """Return the counts of the largest model within a budget, of some groups given; a cost of -1: there is none."""

        def at(fraction: float) -> list[int]:
            return [fixed.get(number, count) for number, count in enumerate(self.counts(fraction))]

        low, high = 0.0, 1.0
        if fixed and self._cost_at(at(0.0), cost) > limit:
            return at(0.0), -1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._cost_at(at(middle), cost) <= limit else (low, middle)
        return self._filled(at(low), cost, limit)

    def _cost_at(self, counts: Sequence[int], cost: Callable[[nn.Module], float]) -> float:
        with self._measured_at(counts) as model:
            return cost(model)

    def _filled(
        self, counts: Sequence[int], cost: Callable[[nn.Module], float], limit: float
    ) -> tuple[list[int], float]:
        """Return fewer units to remove, as many as fit into a budget, and the cost that is left.

        The most important of the removed units of all groups come back first; a group of which one is too much gets no
        further one.
        """
        left, used = list(counts), self._cost_at(counts, cost)
        candidates = {number for number, count in enumerate(left) if count}
        for _ in range(MOST_UNITS):
            if not candidates or used >= FULL * limit:
                break
            nearest = {
                number: float(self._scores[number][self._orders[number][left[number] - 1]]) for number in candidates
            }
            number = max(sorted(nearest), key=nearest.__getitem__)
            left[number] -= 1
            more = self._cost_at(left, cost)
            if more <= limit:
                used = more
            else:
                left[number] += 1
            if more > limit or not left[number]:
                candidates.remove(number)
        return left, used

    def counts(self, fraction: float | Mapping[str, float]) -> list[int]:
        """Return how many units of each group go where a fraction is kept, of all but one.

        Args:
            fraction: Fraction of the channels, or one for each layer.

        Raises:
            PruneError, ValueError: As for `keep_fraction`.
        """
        if not self._groups and self._trials.failure and fraction != 1:
            raise PruneError(self._trials.failure)
        scores = self._scores
        if isinstance(fraction, Mapping):
            if self._criterion.ranking != "uniform":
                raise ValueError(
                    f"ranking {self._criterion.ranking!r} decides itself what each layer keeps: give one fraction"
                )
            if unknown := sorted(fraction.keys() - self.layers.keys()):
                raise PruneError(
                    f"nothing can be removed from {unknown}; layers that can be made smaller: {sorted(self.layers)}"
                )
        if self._criterion.ranking == "global":
            assert not isinstance(fraction, Mapping)  # by the check
            ranked = torch.cat([*scores, torch.empty(0)]).argsort(stable=True)
            dropped = torch.zeros(len(ranked), dtype=torch.bool)
            dropped[ranked[: len(ranked) - round(fraction * len(ranked))]] = True
            counts = [int(part.sum()) for part in torch.split(dropped, [len(score) for score in scores])]
        else:
            kept = [
                fraction.get(group.name, 1.0) if isinstance(fraction, Mapping) else fraction for group in self._groups
            ]
            counts = [len(score) - round(part * len(score)) for part, score in zip(kept, scores, strict=True)]
        return [min(count, group.units - 1) for count, group in zip(counts, self._groups, strict=True)]

    def _removal(self, counts: Sequence[int]) -> list[tuple[channel_groups.Group, Tensor]]:
        """Return the groups, and of each the units that go."""
        return [(group, order[:count]) for group, order, count in zip(self._groups, self._orders, counts, strict=True)]


def _blocks(model: nn.Module) -> list[tuple[str, str]]:
    """Return the path of each block of a list, as a beginning of its tensors' names, and that of the list."""
    return [
        (f"{path}.{name}.".lstrip("."), path)
        for path, module in architecture.block_lists(model).items()
        for name, block in module.named_children()
        if architecture.is_block(block)
    ]


def _spans(group: channel_groups.Group, blocks: Sequence[tuple[str, str]]) -> bool:
    """Return whether a group has parts in several blocks of one list, as what a residual stream carries."""
    found = {(path, block) for member in group.members for block, path in blocks if member.tensor.startswith(block)}
    return len(found) > len({path for path, _ in found})


def _whole(model: nn.Module, smallest: nn.Module) -> list[str]:
    shapes = architecture.shapes(smallest)
    return [name for name, shape in architecture.shapes(model).items() if len(shape) > 1 and shapes[name] == shape]
