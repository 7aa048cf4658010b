"""Pruning at initialization: the mask of a model that is sparse from round 1, by a score for each weight.

SNIP: N. Lee, T. Ajanthan, P. H. S. Torr, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR
    2019, section 4: |weight * gradient|.
GraSP: C. Wang, G. Zhang, R. Grosse, "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020,
    section 4: weight * (Hessian * gradient); weights whose removal would lower the gradient's norm are kept.
SynFlow: H. Tanaka, D. Kunin, D. L. K. Yamins, S. Ganguli, "Pruning neural networks without any data by iteratively
    conserving synaptic flow", NeurIPS 2020, section 6: |weight| times its gradient in a network of absolute values,
    pruned in many small steps.
Baselines: random masks with ERK densities (`dynamic_sparsity.random_mask`), and the largest magnitudes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression.models import batches
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.outputs import fitted
from fedpress.compression.models.pruning import dynamic_sparsity
from fedpress.compression.models.pruning.dynamic_sparsity import AtInitialization, Scope
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.task import Examples, has_target
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.mask import Mask

Loss = Callable[[Tensor, Tensor], Tensor]
Scores = NDArray[np.float64]
"""Score of each entry of the vector without a mask, (n,); the largest are kept."""


def initial_mask(
    model: nn.Module, layout: Layout, settings: AtInitialization, loss: Loss, examples: Examples, seed: int
) -> Mask:
    """Return the mask of an untrained model.

    Args:
        model: Model with its initial weights; left as it is.
        layout: Layout of the model, without a mask.
        settings: Method and density.
        loss: Mean loss of a batch, for snip and grasp.
        examples: At least one example; labels are used by snip and grasp.
        seed: Seed of all random choices; equal seeds give equal masks.

    Raises:
        LayerCollapse: A layer would lose all of its weights.
        ValueError: There are no examples, or a score is NaN.
    """
    if len(examples.targets) == 0:
        raise ValueError("the first mask needs at least one example, got none: is the split of the task empty?")
    scope = settings.scope or "global"
    if settings.method == "erk":
        return dynamic_sparsity.random_mask(layout, settings.density, seed, settings.scope or "erk")
    with reproducible(seed):
        if settings.method == "synflow":
            return _pruned_by_synflow(model, layout, settings, scope, model_inputs.first(examples.inputs))
        trained = copy.deepcopy(model).train()
        if settings.method == "magnitude":
            scores = [parameter.detach().abs() for parameter in _parameters(trained, layout)]
        elif settings.method == "snip":
            scores = snip(trained, layout, loss, examples, settings.batch_size)
        else:
            scores = grasp(trained, layout, loss, examples, settings.batch_size, settings.temperature)
        return dynamic_sparsity.ranked(_vector(scores), layout, settings.density, scope)


def snip(model: nn.Module, layout: Layout, loss: Loss, examples: Examples, batch_size: int) -> list[Tensor]:
    """Return |weight * gradient of the mean loss| of each parameter, in the order of the layout.

    Args:
        model: Model in training mode; left as it is.
        layout: Layout of the model.
        loss: Mean loss of a batch.
        examples: Labeled examples.
        batch_size: Examples in a forward pass.
    """
    parameters = _parameters(model, layout)
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for inputs, targets in _batches(examples, batch_size, model):
        outputs = model_inputs.call(model, inputs)
        value = loss(outputs, fitted(targets, outputs, inputs)) * _share(targets, examples)
        for total, gradient in zip(sums, torch.autograd.grad(value, parameters), strict=True):
            total += gradient
    return [(parameter * total).detach().abs() for parameter, total in zip(parameters, sums, strict=True)]


def grasp(
    model: nn.Module, layout: Layout, loss: Loss, examples: Examples, batch_size: int, temperature: float
) -> list[Tensor]:
    """Return weight * (Hessian * gradient) of each parameter, in the order of the layout.

    The gradient is that of all examples; the Hessian is applied batch by batch.

    Args:
        model: Model in training mode; left as it is.
        layout: Layout of the model.
        loss: Mean loss of a batch.
        examples: Labeled examples.
        batch_size: Examples in a forward pass.
        temperature: Divisor of the logits.
    """
    parameters = _parameters(model, layout)

    def value(inputs: Batch, targets: Tensor) -> Tensor:
        outputs = model_inputs.call(model, inputs)
        fit = fitted(targets, outputs, inputs)
        softer = model_outputs.answers(outputs) / temperature
        return loss(model_outputs.with_answers(outputs, softer), fit) * _share(targets, examples)

    gradient = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in _batches(examples, batch_size, model):
        for total, part in zip(gradient, torch.autograd.grad(value(*batch), parameters), strict=True):
            total += part
    product = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in _batches(examples, batch_size, model):
        graph = torch.autograd.grad(value(*batch), parameters, create_graph=True)
        along = sum((part * fixed).sum() for part, fixed in zip(graph, gradient, strict=True))
        assert isinstance(along, Tensor)
        for total, part in zip(product, torch.autograd.grad(along, parameters, allow_unused=True), strict=True):
            if part is not None:
                total += part
    return [(parameter * total).detach() for parameter, total in zip(parameters, product, strict=True)]


def _share(targets: Tensor, examples: Examples) -> float:
    """Return the weight of a batch's mean loss in that of all examples: its share of the targets that are there."""
    return int(has_target(targets).sum()) / max(1, int(has_target(examples.targets).sum()))


def synflow(model: nn.Module, layout: Layout, inputs: Batch) -> list[Tensor]:
    """Return |weight| times the gradient of the summed outputs, for a model of absolute values.

    Args:
        model: Model in float64 and evaluation mode, every weight >= 0.
        layout: Layout of the model.
        inputs: Input (1, ...) of ones; or of tokens, where the model looks up embeddings.
    """
    parameters = _parameters(model, layout)
    answers = model_outputs.answers(model_inputs.call(model, inputs))
    gradients = torch.autograd.grad(answers.sum(), parameters, allow_unused=True)
    return [
        torch.zeros_like(parameter) if gradient is None else (parameter * gradient).detach()
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]


def _pruned_by_synflow(
    model: nn.Module, layout: Layout, settings: AtInitialization, scope: Scope, example: Batch
) -> Mask:
    linear = copy.deepcopy(model).double().eval()  # float32 overflows in deep networks
    with torch.no_grad():
        for tensor in linear.state_dict().values():
            if tensor.is_floating_point():
                tensor.abs_()
    inputs = model_inputs.mapped(
        example, lambda part: torch.ones_like(part, dtype=torch.float64) if part.is_floating_point() else part
    )
    parameters = _parameters(linear, layout)
    for step in range(1, settings.steps + 1):
        scores = _vector(synflow(linear, layout, inputs))
        mask = dynamic_sparsity.ranked(scores, layout, settings.density ** (step / settings.steps), scope)
        with torch.no_grad():
            for parameter, flags in zip(parameters, np.split(mask.flags, layout.full.offsets[1:-1]), strict=True):
                parameter.mul_(torch.from_numpy(flags).reshape(parameter.shape))
    return mask


def _parameters(model: nn.Module, layout: Layout) -> list[nn.Parameter]:
    named = dict(model.named_parameters())
    return [named[spec.name] for spec in layout.parameters]


def _vector(scores: Sequence[Tensor]) -> Scores:
    parts: list[NDArray[Any]] = [score.double().reshape(-1).numpy() for score in scores]
    return np.concatenate([np.empty(0), *parts])


def _batches(examples: Examples, batch_size: int, model: nn.Module) -> Iterator[tuple[Batch, Tensor]]:
    parts = batches.split(torch.arange(len(examples.targets)), batch_size, model)
    return map(examples.batch, parts)
