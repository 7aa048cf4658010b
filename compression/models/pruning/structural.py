"""Structural pruning: removal of channels, neurons and heads, which leaves an ordinary smaller model.

`channel_groups` finds what must be removed together. By default every layer keeps the same fraction of its channels,
and attention of its heads: those with the largest L2 norm of the whole group, after H. Li, A. Kadav, I. Durdanovic,
H. Samet, H. P. Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017. Other orders are in `importance`; fractions
may differ by layer (`layers_of`). Bisection over the fraction meets a budget.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import flop_counter

from fedpress.compression.errors import FedpressError
from fedpress.compression.models import architecture
from fedpress.compression.models.pruning import channel_groups, importance
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.reproducible import evaluating

BISECTIONS = 12
"""Halvings of the interval of kept fractions, to one channel of 4,096."""


class PruneError(FedpressError, ValueError):
    """The model cannot be pruned."""


class BudgetError(FedpressError, ValueError):
    """The budget cannot be met, even with one channel left in every layer."""


def parameters_of(model: nn.Module) -> int:
    """Return the number of parameters of a model, tied ones once, without buffers."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_of(model: nn.Module, example_input: Tensor) -> int:
    """Return the floating-point operations of one forward pass of one example; a multiply-add counts as two.

    Matrix products, convolutions and attention are counted, by torch's own counter; element-wise operations
    (activations, norms, pooling) are not.

    >>> flops_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(16, 4))
    96

    Args:
        model: The model; run once in evaluation mode, left as it is.
        example_input: Batch of inputs, (N, ...), of which the first is used.
    """
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _recurrent})
    # The CPU's fused attention is unknown to the counter; unfused, it is matrix products.
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), counter:
        model(example_input[:1])
    return int(counter.get_total_flops())


def _recurrent(
    inputs: tuple[int, ...], weight_ih: tuple[int, ...], weight_hh: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """Return the FLOPs of one direction of a recurrent layer (oneDNN's fused kernel), from its arguments' shapes."""
    return 2 * math.prod(inputs[:-1]) * (math.prod(weight_ih) + math.prod(weight_hh))


def prune_to(
    model: nn.Module,
    example_input: Tensor,
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
        example_input: Batch of inputs, (N, ...).
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
        lambda smaller: parameters_of(smaller) <= parameters,
        f"{parameters:,} parameters",
        ignored,
        criterion,
    )


def prune_while(
    model: nn.Module,
    example_input: Tensor,
    fits: Callable[[nn.Module], bool],
    budget: str,
    ignored: Collection[nn.Module] = (),
    criterion: Criterion = importance.DEFAULT,
) -> nn.Module:
    """Return the largest pruned version of a model that fits, by bisection over the fraction of channels kept.

    Args:
        model: Model that autograd can trace, whose output layers keep their size; untouched.
        example_input: Batch of inputs, (N, ...).
        fits: Whether a model is within the budget; monotonic: true for a model implies true for smaller ones.
        budget: Description of the budget, for the error.
        ignored: Layers of `model` whose own channels are kept.
        criterion: Order of removal.

    Raises:
        BudgetError, PruneError: As for `prune_to`.
    """
    if fits(model):
        return copy.deepcopy(model)
    smallest = keep_fraction(model, example_input, 0.0, ignored, criterion)
    if not fits(smallest):
        raise BudgetError(
            f"a student within {budget} is impossible: with one channel left in every layer that can be pruned, this"
            f" model of {parameters_of(model):,} parameters still has {parameters_of(smallest):,}; layers kept whole:"
            f" {_whole(model, smallest) or 'none'}. Raise the budget, or give the task a smaller model"
        )
    best, low, high = smallest, 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        candidate = keep_fraction(model, example_input, middle, ignored, criterion)
        if fits(candidate):
            best, low = candidate, middle
        else:
            high = middle
    return best


def layers_of(model: nn.Module, example_input: Tensor, ignored: Collection[nn.Module] = ()) -> dict[str, int]:
    """Return the prunable layers by name, in the model's order, with their numbers of channels or heads.

    Layers that must keep the same channels, such as both ends of a residual connection, are represented by the first.

    >>> layers_of(nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2)), torch.zeros(1, 4))
    {'0': 100}

    Args:
        model: The model; untouched.
        example_input: Batch of inputs, (N, ...).
        ignored: Layers of `model` whose own channels are kept.
    """
    paths = _paths(model, ignored)
    copied = copy.deepcopy(model).cpu().eval()
    kept_whole = [module for path, module in copied.named_modules() if path in paths]
    _, groups = channel_groups.find(copied, example_input.detach().cpu(), kept_whole)
    units = {name: len(group.units) for name, group in zip(_names(copied, groups), groups, strict=True)}
    return {path: units[path] for path, _ in model.named_modules() if path in units}


def keep_fraction(
    model: nn.Module,
    example_input: Tensor,
    fraction: float | Mapping[str, float],
    ignored: Collection[nn.Module] = (),
    criterion: Criterion = importance.DEFAULT,
) -> nn.Module:
    """Return a model that keeps a fraction of the channels and attention heads of every layer, at least one each.

    With a global ranking it is the fraction of all of them together.

    Args:
        model: Model that autograd can trace, whose output layers keep their size; untouched.
        example_input: Batch of inputs, (N, ...).
        fraction: Fraction of the channels in [0, 1] (parameters fall by about its square); or a fraction for each
            layer, by name as in `layers_of`, without which a layer stays whole.
        ignored: Layers of `model` whose own channels are kept.
        criterion: Order of removal.

    Raises:
        PruneError: As for `prune_to`, or a fraction is given for a layer that cannot be pruned.
        ValueError: The criterion is not defined for channels, or ranks across layers with a fraction each.
    """
    criterion.check()
    if criterion.ranking == "erk":
        raise ValueError(
            "ranking 'erk' gives densities of single weights, it is not defined for channels; see `weights`"
        )
    if isinstance(fraction, Mapping) and criterion.ranking != "uniform":
        raise ValueError(
            f"ranking {criterion.ranking!r} decides itself what each layer keeps; give one fraction for all"
        )
    paths = _paths(model, ignored)
    pruned = copy.deepcopy(model).cpu()
    modes = {module: module.training for module in pruned.modules()}
    example = example_input.detach().cpu()
    pruned.eval()  # the traced pass must not update batch norms or draw dropout
    try:
        before = _output_shapes(pruned(example))
        gradients = criterion.gradients or {}
        for name, parameter in pruned.named_parameters():
            parameter.grad = gradients[name].clone() if name in gradients else None
        kept_whole = [module for path, module in pruned.named_modules() if path in paths]
        _remove(pruned, example, fraction, kept_whole, criterion)
        after = _output_shapes(pruned(example))
    except (RuntimeError, TypeError) as error:
        raise PruneError(
            f"the pruned model does not run: {error}. The likely cause is a size written into its forward pass, such as"
            " x.view(-1, 1024): write x.flatten(1), or name the layer in `ignored`"
        ) from error
    if before != after:
        raise PruneError(
            f"pruning changed the model's output from {before} to {after}: name its last layer in `ignored`"
        )
    for module, training in modes.items():
        module.training = training
    for parameter in pruned.parameters():
        parameter.grad = None
    return pruned


def _paths(model: nn.Module, layers: Collection[nn.Module]) -> set[str]:
    return {path for path, module in model.named_modules() if any(module is layer for layer in layers)}


def _names(model: nn.Module, groups: list[channel_groups.Group]) -> list[str]:
    """Return the name of the root layer of each group."""
    paths = {module: path for path, module in model.named_modules()}
    return [paths[group.members[0].dep.target.module] for group in groups]


def _remove(
    model: nn.Module,
    example: Tensor,
    fraction: float | Mapping[str, float],
    kept_whole: list[nn.Module],
    criterion: Criterion,
) -> None:
    graph, groups = channel_groups.find(model, example, kept_whole)
    names = _names(model, groups)
    if isinstance(fraction, Mapping):
        if unknown := sorted(fraction.keys() - set(names)):
            raise PruneError(f"nothing can be removed from {unknown}; layers that can be made smaller: {sorted(names)}")
        fractions = [fraction.get(name, 1.0) for name in names]
    else:
        fractions = [fraction] * len(groups)
    scores = importance.of_units(groups, criterion)
    if criterion.ranking == "global":
        assert not isinstance(fraction, Mapping)  # by the check
        ranked = torch.cat(scores).argsort(stable=True)
        dropped = torch.zeros(len(ranked), dtype=torch.bool)
        dropped[ranked[: len(ranked) - round(fraction * len(ranked))]] = True
        counts = [int(part.sum()) for part in torch.split(dropped, [len(score) for score in scores])]
    else:
        counts = [len(score) - round(kept * len(score)) for kept, score in zip(fractions, scores, strict=True)]
    for group, score, count in zip(groups, scores, counts, strict=True):
        channel_groups.remove(graph, group, score.argsort(stable=True)[: min(count, len(score) - 1)])


def _output_shapes(outputs: Any) -> list[tuple[int, ...]]:
    if isinstance(outputs, Tensor):
        return [tuple(outputs.shape)]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [shape for value in values for shape in _output_shapes(value)]


def _whole(model: nn.Module, smallest: nn.Module) -> list[str]:
    shapes = architecture.shapes(smallest)
    return [name for name, shape in architecture.shapes(model).items() if len(shape) > 1 and shapes[name] == shape]
