"""Outputs for an input that depend on the other inputs of its batch, on its padding, or on chance: found and named.

A model is tried on some inputs, in other batches and padded otherwise. Where its outputs differ, the error names the
innermost layer that returned something else for the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.inputs import Batch, Inputs
from fedpress.compression.models.outputs import EvaluationError, Outputs, rows_of, same, tensors
from fedpress.compression.models.reproducible import evaluating

PIECE: Final = 64
"""Largest number of inputs in a forward pass on a CPU."""
SAMPLE: Final = 6
"""Inputs that are run a second time, as a batch of their own."""
WHOLE_BYTES: Final = 1 << 30
"""Memory that a forward pass over all inputs may take, in bytes, by estimate."""
CPU: Final = torch.device("cpu")


class BatchDependent(EvaluationError):
    """The outputs for an input depend on the other inputs of its batch, or on nothing but chance."""


def require_independent(model: nn.Module, inputs: Inputs) -> None:
    """Check that the outputs for each input are the same whatever the rest of its batch.

    Args:
        model: The model; run in evaluation mode, left as it is.
        inputs: Inputs (N, ...), N >= 1.

    Raises:
        BatchDependent: They are not; the error names the layer.
    """
    some = several(model_inputs.first(inputs, PIECE))
    with evaluating(model):
        outputs = _run(model, some)
        if not holds(model, some, outputs):
            raise BatchDependent(_explained(model, some))
        require_padding_ignored(model, inputs, some, outputs)


def require_evaluable(model: nn.Module, inputs: Inputs) -> None:
    """Check that `batches` can run a model on inputs, by running it on some of them.

    Args:
        model: The model; run in evaluation mode, left as it is.
        inputs: All inputs that it will be run on, (N, ...), N >= 1.

    Raises:
        EvaluationError: It cannot; the error names the layer.
    """
    some = model_inputs.first(inputs, PIECE)
    with evaluating(model):
        outputs = _run(model, some)
        if not holds(model, some, outputs):
            require_one_batch(model, inputs, CPU)
        else:
            require_padding_ignored(model, inputs, some, outputs)


def several(inputs: Batch) -> Batch:
    """Return inputs (N, ...) as they are if there are several; a single one with three that are like it.

    Args:
        inputs: Inputs in memory; whole numbers are kept, in another order, which is the same for all tensors.
    """
    if model_inputs.count(inputs) > 1:
        return inputs
    return model_inputs.mapped(inputs, _with_others)


def _with_others(single: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    if not single.is_floating_point():
        orders = [torch.randperm(single.numel(), generator=draw) for _ in range(3)]
        return torch.cat([single, *(single.flatten()[order].reshape(single.shape) for order in orders)])
    noise = torch.randn((2, *single.shape[1:]), generator=draw).to(single)
    return torch.cat([single, -single, single + noise * single.abs().mean().clamp(min=0.1)])


def holds(model: nn.Module, batch: Batch, outputs: Outputs) -> bool:
    """Return whether some inputs, as a batch of their own, have the outputs that they have in the batch."""
    count = model_inputs.count(batch)
    if count == 1:
        return True
    if not by_example(outputs, count):
        return False
    rows = slice(1, None, max(1, count // SAMPLE))  # other places in the batch, other neighbors
    try:
        alone = model_inputs.call(model, model_inputs.take(batch, rows))
    except (RuntimeError, ValueError):
        return False
    return same([rows_of(tensor, count, rows) for tensor in tensors(outputs)], tensors(alone))


def by_example(outputs: Outputs, count: int) -> bool:
    """Return whether the first axis of each output is that of the examples, or of them and their places in a row."""
    return all(tensor.ndim and len(tensor) and len(tensor) % count == 0 for tensor in tensors(outputs))


def require_padding_ignored(model: nn.Module, inputs: Inputs, batch: Batch, outputs: Outputs) -> None:
    """Check that some of the first stored inputs, each padded to its own length, have the outputs that they have.

    Args:
        model: Model in evaluation mode; one with `compared` is passed over, as its answers were compared already.
        inputs: All inputs; what is in memory is not padded otherwise.
        batch: The first of them, on the model's device.
        outputs: Outputs for these.

    Raises:
        BatchDependent: They have others.
    """
    size, count = model_inputs.length(batch), min(model_inputs.count(batch), model_inputs.count(inputs))
    if size is None or isinstance(inputs, Tensor | Mapping) or getattr(model, "compared", False):
        return
    device = next(iter(batch.values())).device
    for row in range(0, count, max(1, count // SAMPLE)):
        twice = model_inputs.to(model_inputs.take(inputs, torch.tensor([row, row])), device)  # some layers take no one
        length = model_inputs.length(twice)
        if length is None or length >= size:
            continue
        expected = [rows_of(part, model_inputs.count(batch), slice(row, row + 1)) for part in tensors(outputs)]
        alone = [rows_of(part, 2, slice(0, 1)) for part in tensors(_run(model, twice))]
        if not any(
            same([_cut(part, to, side) for part, to in zip(expected, alone, strict=False)], alone) for side in (0, 1)
        ):
            raise BatchDependent(
                f"the outputs of the model ({type(model).__name__}) for example {row}, a sequence of {length} places,"
                f" are others where its batch is padded to {size}: padding is attended to. Does the model ignore its"
                " mask, take a mean over padding, or count positions from padding on the left? The collator must return"
                " the mask, such as 'attention_mask', and the model use it; or pad all sequences to one length"
            )


def _cut(part: Tensor, like: Tensor, side: int) -> Tensor:
    """Return a tensor cut to the sizes of another, at the end (0) or at the beginning (1) of each axis."""
    if part.ndim != like.ndim:
        return part
    for axis, size in enumerate(like.shape):
        part = part.narrow(axis, (part.shape[axis] - size) * side, size) if part.shape[axis] > size else part
    return part


def require_one_batch(model: nn.Module, inputs: Inputs, device: torch.device) -> None:
    """Check that a model is no different the second time, and that all inputs fit into one batch."""
    count = model_inputs.count(inputs)
    few = model_inputs.to(model_inputs.first(inputs, 2 * SAMPLE if count > PIECE else count), device)
    if not same(tensors(_run(model, few)), tensors(_run(model, few))):
        raise BatchDependent(_explained(model, few))
    needed = 3 * _widest(model, few) * count // model_inputs.count(few)
    if needed > WHOLE_BYTES:
        raise BatchDependent(
            f"{_explained(model, few)} A batch of all {count:,} examples would take about {needed / 1e9:.1f} GB,"
            f" the limit is {WHOLE_BYTES / 1e9:.1f}: make that layer independent of the batch, or give fewer examples."
        )


def _run(model: nn.Module, batch: Batch) -> Outputs:
    try:
        return model_inputs.call(model, batch)
    except (RuntimeError, ValueError) as error:
        raise EvaluationError(
            f"the model does not run on a batch of {model_inputs.count(batch)} inputs {model_inputs.form(batch)}"
            f" ({error}): expected to run on any number; is the size of a batch written into it?"
        ) from error


def _widest(model: nn.Module, batch: Batch) -> int:
    """Return the size of the largest output of a layer, in bytes."""
    return max(sum(tensor.nbytes for tensor in call.outputs) for call in _calls(model, batch))


class _Call:
    """A call of a layer: its name, and the tensors that it was given and returned."""

    def __init__(self, name: str, given: list[Tensor], outputs: list[Tensor]) -> None:
        self.name, self.given, self.outputs = name, given, outputs


def _calls(model: nn.Module, batch: Batch) -> list[_Call]:
    """Return the calls of all layers in a forward pass, inner layers before those that hold them."""
    calls: list[_Call] = []

    def noting(name: str) -> Callable[..., None]:
        def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], outputs: Any) -> None:
            calls.append(_Call(name, _copies([*given, named]), _copies([outputs])))

        return note

    handles = [module.register_forward_hook(noting(name), with_kwargs=True) for name, module in model.named_modules()]
    try:
        model_inputs.call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _copies(parts: Iterable[Any]) -> list[Tensor]:
    """Return copies of the tensors among a layer's arguments or results, which later layers may overwrite."""
    found: list[Tensor] = []
    for part in parts:
        if isinstance(part, Tensor):
            found.append(part.clone())
        elif isinstance(part, Mapping):
            found += _copies(part.values())
        elif isinstance(part, list | tuple):
            found += _copies(part)
    return found


def _explained(model: nn.Module, batch: Batch) -> str:
    """Return a sentence that names the layer by which outputs depend on the batch, or on chance."""
    few = model_inputs.first(batch, 2 * SAMPLE)
    count, rows = model_inputs.count(few), slice(1, None, 2)
    try:
        calls = _calls(model, few)
        name = _culprit(calls, _calls(model, few), lambda tensor: tensor)
        if name is not None:
            return (
                f"in evaluation mode {_described(model, name)} does not answer the same inputs twice alike: does it"
                " call functional.dropout without training=self.training, draw random numbers, or keep something from"
                " one call to the next?"
            )
        name = _culprit(calls, _calls(model, model_inputs.take(few, rows)), lambda tensor: rows_of(tensor, count, rows))
    except (RuntimeError, ValueError) as error:
        return f"the model runs on a batch of {model_inputs.count(batch)} inputs, but not on fewer of them ({error})."
    return (
        f"in evaluation mode the outputs of {_described(model, name or '')} for an input depend on the other inputs of"
        " its batch, as with batch normalization that keeps no running statistics (track_running_stats=False)."
    )


def _culprit(whole: list[_Call], part: list[_Call], sliced: Callable[[Tensor], Tensor]) -> str | None:
    """Return the first, innermost layer that returned something else for the same arguments; None: there is none."""
    for one, other in zip(whole, part, strict=False):
        given = same([sliced(tensor) for tensor in one.given], other.given)
        if given and not same([sliced(tensor) for tensor in one.outputs], other.outputs):
            return one.name
    return None


def _described(model: nn.Module, name: str) -> str:
    kind = type(model.get_submodule(name)).__name__
    return f"layer {name!r} ({kind})" if name else f"the model itself ({kind})"
