"""Structural pruning: channels and neurons are really removed, the model left is an ordinary smaller one.

Which parts hang together (a channel, the batch norm behind it, the columns of the next layer, both ends of a residual
connection) is found with Torch-Pruning's dependency graph [1]. Every layer keeps the same fraction of its channels,
those with the largest L2 norm over all that goes with them [2]; the fraction is found by bisection so that the budget
is met.

[1] G. Fang, X. Ma, M. Song, M. B. Mi, X. Wang, "DepGraph: Towards Any Structural Pruning", CVPR 2023, section 3.
[2] H. Li, A. Kadav, I. Durdanovic, H. Samet, H. P. Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017; here with
    the L2 norm of the whole group, section 3.3 of [1].
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils import flop_counter

from fedpress.compression.errors import FedpressError
from fedpress.compression.models import architecture

BISECTIONS = 12
"""Halvings of the interval of kept fractions: one channel of 4,096."""


class PruneError(FedpressError, ValueError):
    """The model cannot be pruned."""


class BudgetError(FedpressError, ValueError):
    """The budget cannot be met, even with one channel left in every layer."""


def parameters_of(model: nn.Module) -> int:
    """How many parameters a model has, tied ones once, buffers apart."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_of(model: nn.Module, example_input: Tensor) -> int:
    """Floating-point operations of one forward pass of one example, a multiplication and an addition counted as two.

    Of matrix products, convolutions and attention, as torch's own counter has them; what is done element by element
    (activations, norms, pooling) is not counted.

    >>> flops_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(16, 4))
    96

    Args:
        model: Run once, in evaluation mode; left as it is.
        example_input: A batch as the model is called with, (N, ...); the first is taken.
    """
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _recurrent})
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # The CPU's fused attention is unknown to the counter; unfused, it is matrix products.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(example_input[:1])
    finally:
        for module, training in modes.items():
            module.training = training
    return int(counter.get_total_flops())


def _recurrent(
    inputs: tuple[int, ...], weight_ih: tuple[int, ...], weight_hh: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """FLOPs of one direction of one recurrent layer (oneDNN's fused kernel), from the shapes of its arguments."""
    return 2 * math.prod(inputs[:-1]) * (math.prod(weight_ih) + math.prod(weight_hh))


def prune_to(
    model: nn.Module, example_input: Tensor, parameters: int, ignored: Collection[nn.Module] = ()
) -> nn.Module:
    """Return a smaller model with at most `parameters` parameters; the given one is untouched.

    >>> model = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2))
    >>> small = prune_to(model, torch.zeros(1, 4), 72)
    >>> parameters_of(small), small[0].out_features
    (72, 10)

    Args:
        model: Any model that autograd can trace; its output layers keep their size.
        example_input: A batch as the model is called with, (N, ...).
        parameters: The most that may be left.
        ignored: Layers of `model` whose own channels are kept.

    Raises:
        BudgetError: Even the smallest version has more parameters.
        PruneError: The pruned model does not run, or answers in another shape.
    """
    return prune_while(
        model,
        example_input,
        lambda smaller: parameters_of(smaller) <= parameters,
        f"{parameters:,} parameters",
        ignored,
    )


def prune_while(
    model: nn.Module,
    example_input: Tensor,
    fits: Callable[[nn.Module], bool],
    budget: str,
    ignored: Collection[nn.Module] = (),
) -> nn.Module:
    """Return the largest version of the model that fits, by bisection over the fraction of channels kept.

    Args:
        fits: Whether a model is within the budget; true of smaller models where it is true of larger ones.
        budget: The budget in words, for the error.
        model, example_input, ignored: As for `prune_to`.

    Raises:
        BudgetError, PruneError: As for `prune_to`.
    """
    if fits(model):
        return copy.deepcopy(model)
    smallest = keep_fraction(model, example_input, 0.0, ignored)
    if not fits(smallest):
        raise BudgetError(
            f"a student within {budget} is impossible: with one channel left in every layer that can be pruned, this"
            f" model of {parameters_of(model):,} parameters still has {parameters_of(smallest):,}; layers kept whole:"
            f" {_whole(model, smallest) or 'none'}. Raise the budget, or give the task a smaller model"
        )
    best, low, high = smallest, 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        candidate = keep_fraction(model, example_input, middle, ignored)
        if fits(candidate):
            best, low = candidate, middle
        else:
            high = middle
    return best


def keep_fraction(
    model: nn.Module, example_input: Tensor, fraction: float, ignored: Collection[nn.Module] = ()
) -> nn.Module:
    """Return a model that keeps `fraction` of the channels of every layer, at least one each.

    Args:
        fraction: 0 <= fraction <= 1, of the channels (parameters fall by about its square).
        model, example_input, ignored: As for `prune_to`.

    Raises:
        PruneError: As for `prune_to`.
    """
    paths = {path for path, module in model.named_modules() if any(module is layer for layer in ignored)}
    pruned = copy.deepcopy(model).cpu()
    modes = {module: module.training for module in pruned.modules()}
    example = example_input.detach().cpu()
    pruned.eval()  # batch norm and dropout: the traced pass must not change or draw anything
    try:
        before = _output_shapes(pruned(example))
        _remove(pruned, example, fraction, [module for path, module in pruned.named_modules() if path in paths])
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


def _remove(model: nn.Module, example: Tensor, fraction: float, kept_whole: list[nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters outside layers, which are kept whole below
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    tied = _tied(model)
    roots = [torch_pruning.ops.TORCH_CONV, torch_pruning.ops.TORCH_LINEAR]
    # Listed first: which layers are the last ones must be told before anything is removed.
    groups = [
        group
        for group in graph.get_all_groups(ignored_layers=kept_whole, root_module_types=roots)
        if _prunable(group, tied) and _has_consumer(group)
    ]
    for listed in groups:
        module, function = listed[0].dep.target.module, listed[0].dep.handler
        group = graph.get_pruning_group(module, function, list(range(graph.get_out_channels(module))))
        blocks = _blocks(group)
        scores = importance(group).reshape(blocks, -1).mean(dim=0)
        kept = max(1, round(fraction * len(scores)))
        worst = torch.argsort(scores, stable=True)[: len(scores) - kept]
        removed = (torch.arange(blocks)[:, None] * len(scores) + worst).flatten().tolist()
        if removed:
            graph.get_pruning_group(module, function, removed).prune()


def _prunable(group: Any, tied: set[nn.Module]) -> bool:
    """Whether everything that the group touches can be rebuilt at another size; the graph's own nodes hold nothing."""
    for dep, _ in group:
        part = dep.target.module
        if not isinstance(part, nn.Module):  # a bare parameter
            return False
        if isinstance(part, _ConvTransposeNd) and part.groups > 1:  # the graph mixes up their groups
            return False
        if part in tied or (any(True for _ in part.parameters()) and not isinstance(part, architecture.RESIZABLE)):
            return False
    return True


def _has_consumer(group: Any) -> bool:
    """Whether a layer takes the group's channels in; without one, they are the model's output."""
    return any(
        dep.handler in (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)
        for dep, _ in group
    )


def _blocks(group: Any) -> int:
    """Into how many blocks of equal size grouped convolutions and group norms divide the channels."""
    blocks = 1
    for dep, _ in group:
        module = dep.target.module
        if isinstance(module, nn.GroupNorm):
            blocks = max(blocks, module.num_groups)
        elif isinstance(module, torch_pruning.ops.TORCH_CONV) and module.groups < module.in_channels:
            blocks = max(blocks, module.groups)
    return blocks


def _tied(model: nn.Module) -> set[nn.Module]:
    """The layers that share a parameter with another: the graph would prune each apart and untie them."""
    holders: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(module)
    return {module for sharing in holders.values() if len(sharing) > 1 for module in sharing}


def _output_shapes(outputs: Any) -> list[tuple[int, ...]]:
    if isinstance(outputs, Tensor):
        return [tuple(outputs.shape)]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [shape for value in values for shape in _output_shapes(value)]


def _whole(model: nn.Module, smallest: nn.Module) -> list[str]:
    shapes = architecture.shapes(smallest)
    return [name for name, shape in architecture.shapes(model).items() if len(shape) > 1 and shapes[name] == shape]
