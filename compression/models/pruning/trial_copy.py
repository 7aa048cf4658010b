"""A copy of a model for trials: with weights and inputs that show as much as possible, and its own rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from fedpress.compression.models import architecture, multihead_attention, vocabulary
from fedpress.compression.models.pruning.channel_flow import PruneError, Steady, placed
from fedpress.compression.models.pruning.channel_removal import called, copied, named_tensors, on_cpu, outputs_of

_LARGEST_TOLERANCE: Final = 1e-3
"""Relative difference between outputs beyond which no amount of the model's own rounding is an excuse."""
ROWS: Final = 1024
"""Rows of a table of tokens that a trial keeps: half of a small model are such rows, and one token is like another."""


class Running(NamedTuple):
    """A copy of a model that runs.

    Attributes:
        model: The copy.
        batch: Its inputs.
        tolerance: Relative difference of its outputs that rounding explains.
        shortened: Names of tensors whose first axis is shorter than the model's.
    """

    model: nn.Module
    batch: Any
    tolerance: float
    shortened: frozenset[str]


def running(model: nn.Module, example: Any, seconds: float, *, whole: bool = False) -> Running:
    """Return a copy with weights and inputs that show as much as possible, and the tolerance for its outputs.

    Random weights in float64, because weights of zero hide everything; the model's own where it does not run on them or
    does not answer finite numbers. It takes twice the memory of a float32 model without its rows of tokens, of which
    `ROWS` stay if the model runs with these.

    Args:
        model: The model; untouched.
        example: Inputs in memory; or a tuple of arguments.
        seconds: Longest forward pass.
        whole: Whether all rows of tokens stay.

    Raises:
        PruneError: The model does not run on the example.
    """
    failure: Exception | None = None
    tables = any(isinstance(module, nn.Embedding) and module.num_embeddings > ROWS for module in model.modules())
    for short, weights, inputs, exact in (
        *([(True, True, True, True)] if tables and not whole else []),
        (False, True, True, True),
        (False, False, True, True),
        (False, False, False, True),
        (False, False, False, False),
    ):
        probe = copied(model).eval()
        multihead_attention.resizable(probe)
        shortened = _shorten(probe) if short else frozenset[str]()
        if exact:
            probe = nn.Module.double(probe)  # a layer may have that name
        if weights:
            _randomize(probe)
        batch = on_cpu(example, _random_inputs(probe, ROWS if short else None) if inputs else lambda tensor: tensor)
        if exact:
            batch = on_cpu(batch, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
        try:
            outputs = _run(probe, batch, seconds)
            _disturb(probe)
            again = _run(probe, batch, seconds)
        except PruneError:
            raise
        except Exception as error:
            failure = error
            continue
        if not any(bool(output.isfinite().all()) and bool(output.any()) for output in outputs):
            continue
        noise = difference(again, outputs)
        least = 1e-9 if exact else 1e-5
        return Running(probe, batch, min(_LARGEST_TOLERANCE, max(least, 1e3 * noise)), shortened)
    if failure is not None:
        raise PruneError(
            f"the model does not run on the example: {type(failure).__name__}: {failure}. Expected a tensor, a"
            " tuple of arguments or a dict of named ones that its forward pass takes, in evaluation mode on a CPU"
        ) from failure
    return Running(probe, batch, 1e-5, shortened)  # all outputs are zero, or none is finite


def _run(model: nn.Module, batch: Any, seconds: float) -> list[Tensor]:
    with placed(model, Steady(seconds)):
        return outputs_of(called(model, batch))


def _shorten(model: nn.Module) -> frozenset[str]:
    """Keep the first `ROWS` rows of each table of tokens, in place, also in the output layer that is tied to it.

    Returns:
        Names of the tensors that are shorter now.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) and module.num_embeddings > ROWS]
    tied = {id(table.weight) for table in tables}
    for module in model.modules():
        weight = architecture.own_tensors(module).get("weight")
        if weight is None or id(weight) not in tied:
            continue
        of_ids = isinstance(module, vocabulary.VocabularyHead)  # it answers for all ids, of any number of rows
        bias = None if of_ids else getattr(module, "bias", None)
        for tensor in (weight, bias) if isinstance(bias, Tensor) else (weight,):
            tensor.data = tensor.data[:ROWS].clone()
        if isinstance(module, vocabulary.Vocabulary):
            module.rows.copy_(vocabulary.rows_of(module.rows, len(module.rows)) % ROWS)
        if isinstance(module, nn.Embedding):
            module.num_embeddings = ROWS
            module.padding_idx = None
        elif isinstance(module, nn.Linear):
            module.out_features = ROWS
            tied.update(() if bias is None else (id(bias),))
    return frozenset(name for name, tensor in named_tensors(model).items() if id(tensor) in tied)


def _randomize(model: nn.Module) -> None:
    """Draw new weights, in place: of a layer's usual size, and of norms near one, so that no channel is silent."""
    for module in model.modules():
        resizable = isinstance(module, architecture.RESIZABLE)
        for key, tensor in architecture.own_tensors(module).items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape).to(tensor.dtype)  # float64 takes eight times as long to draw
            if key == "running_var" or (resizable and tensor.ndim == 1 and key == "weight"):
                tensor.data = 1 + 0.5 * noise.tanh()
            elif resizable and tensor.ndim > 1:
                tensor.data = (
                    noise / math.sqrt(max(1, tensor[0].numel())) * (1 if isinstance(module, nn.Embedding) else 1.5)
                )
            elif isinstance(tensor, nn.Parameter) and tensor.ndim == 2 and min(tensor.shape) > 1:
                tensor.data = noise * tensor.numel() ** -0.25
            elif isinstance(tensor, nn.Parameter) or key == "running_mean":
                tensor.data = tensor.data + 0.3 * noise


def _random_inputs(model: nn.Module, most: int | None) -> Callable[[Tensor], Tensor]:
    """Return a function that draws inputs like an example: of its mean and deviation, or any tokens that are known.

    Args:
        model: The model.
        most: Number of tokens that are known; None: as many as each table has.
    """
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]

    def change(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            spread = tensor.std(correction=0) if tensor.numel() else tensor.sum()
            return tensor.mean() + torch.randn_like(tensor) * (spread if spread > 0 else 1)
        if tensor.dtype == torch.bool or tensor.numel() == 0:
            return tensor
        low, high = int(tensor.min()), max(int(tensor.max()) + 1, min(tables, default=0))
        if most is not None and high > most:
            low, high = min(low, most // 2), most
        return torch.randint(min(low, high - 1), high, tensor.shape, dtype=tensor.dtype)

    return change


def _disturb(model: nn.Module) -> None:
    """Move weights by a few units in the last place, in place: outputs then show the model's own rounding."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            size = 4 * torch.finfo(parameter.dtype).eps
            change = size * parameter.data
            for axis, length in enumerate(parameter.shape):  # an entry's sign is the product of those along its axes
                shape = [length if each == axis else 1 for each in range(parameter.ndim)]
                change *= torch.randn(length).sign().view(shape)
            parameter.data += change


def difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the largest difference between outputs of the same shapes, relative to the largest entry of each."""
    worst = 0.0
    for one, two in zip(first, second, strict=True):
        one, two = one.double(), two.double()
        finite = two.isfinite()
        if not torch.equal(finite, one.isfinite()):
            return math.inf
        if finite.any():
            scale = float(two[finite].abs().max())
            worst = max(worst, float((one - two)[finite].abs().max()) / (scale or 1.0))
    return worst
