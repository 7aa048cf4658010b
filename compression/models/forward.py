"""Outputs of a model for many inputs: computed in pieces, as if in one batch.

Law: the outputs are those of one forward pass over all inputs, up to rounding, whatever the size of the batches and the
number of threads. It rests on the outputs for an input not depending on the other inputs of its batch, which is checked
on some inputs of each call. A model for which it does not hold, such as one with batch normalization that keeps no
running statistics, is run on all inputs at once, or refused if these are too many; one whose outputs are never the same
twice is refused. Both errors name the layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from fedpress.compression.errors import FedpressError
from fedpress.compression.models.reproducible import evaluating

PIECE: Final = 64
"""Largest number of inputs in a forward pass on a CPU."""
SAMPLE: Final = 6
"""Inputs that are run a second time, as a batch of their own."""
WHOLE_BYTES: Final = 1 << 30
"""Memory that a forward pass over all inputs may take, in bytes, by estimate."""

CPU: Final = torch.device("cpu")

Outputs = Any
"""Outputs of a model: a tensor (N, ...), or a tuple, list or mapping of such."""


class EvaluationError(FedpressError, ValueError):
    """A model cannot be evaluated: its outputs, or what the task makes of them, are not defined example by example."""


class BatchDependent(EvaluationError):
    """The outputs for an input depend on the other inputs of its batch, or on nothing but chance."""


@contextmanager
def batches(
    model: nn.Module, inputs: Tensor, batch_size: int = 512, device: torch.device = CPU
) -> Iterator[Iterator[tuple[slice, Outputs]]]:
    """Yield an iterator over the rows of each batch, in order, and the model's outputs for them.

    On a CPU, batches are run in pieces on several threads: small pieces stay in the processor's cache, and threads that
    share nothing do not wait for each other. Each thread has a copy of the model, which may write into itself. No piece
    is of one input, unless `batch_size` is 1 or there is but one, because some layers treat a single input otherwise.

    Args:
        model: Model in evaluation mode, on `device`; gradients are switched off.
        inputs: Inputs (N, ...), N >= 1, on any device.
        batch_size: Largest number of inputs in a batch.
        device: Device of the model.

    Raises:
        BatchDependent: Outputs depend on the batch and the inputs are too many for one, or they are random.
    """
    with _answering(model, device, min(batch_size, len(inputs))) as answer:
        yield _batches(model, answer, inputs, batch_size, device)


def _batches(
    model: nn.Module,
    answer: Callable[[Tensor], Outputs],
    inputs: Tensor,
    batch_size: int,
    device: torch.device,
) -> Iterator[tuple[slice, Outputs]]:
    start = 0
    for batch in even(inputs, batch_size):
        moved, rows = batch.to(device), slice(start, start + len(batch))
        if start == 0:
            outputs = _checked(model, answer, moved)
            if outputs is None:
                moved = inputs.to(device)
                _require_one_batch(model, moved)
                yield slice(0, len(inputs)), model(moved)
                return
        else:
            outputs = answer(moved)
        yield rows, outputs
        start = rows.stop


def even(inputs: Tensor, most: int) -> tuple[Tensor, ...]:
    """Return inputs (N, ...) in pieces of nearly equal size.

    >>> [len(piece) for piece in even(torch.zeros(65), 64)]
    [33, 32]

    Args:
        inputs: The inputs.
        most: Largest size of a piece.
    """
    return torch.tensor_split(inputs, max(1, -(-len(inputs) // most)))


def require_independent(model: nn.Module, inputs: Tensor) -> None:
    """Check that the outputs for each input are the same whatever the rest of its batch.

    Args:
        model: The model; run in evaluation mode, left as it is.
        inputs: Inputs (N, ...), N >= 1.

    Raises:
        BatchDependent: They are not; the error names the layer.
    """
    some = several(inputs[:PIECE])
    with evaluating(model):
        if not _holds(model, some, _run(model, some)):
            raise BatchDependent(_explained(model, some))


def several(inputs: Tensor) -> Tensor:
    """Return inputs (N, ...) as they are if there are several; a single one with three that are like it.

    Args:
        inputs: The inputs; whole numbers are kept, in another order.
    """
    if len(inputs) > 1:
        return inputs
    draw = torch.Generator().manual_seed(0)
    if not inputs.is_floating_point():
        orders = [torch.randperm(inputs.numel(), generator=draw) for _ in range(3)]
        return torch.cat([inputs, *(inputs.flatten()[order].reshape(inputs.shape) for order in orders)])
    noise = torch.randn((2, *inputs.shape[1:]), generator=draw).to(inputs)
    return torch.cat([inputs, -inputs, inputs + noise * inputs.abs().mean().clamp(min=0.1)])


def require_evaluable(model: nn.Module, inputs: Tensor) -> None:
    """Check that `batches` can run a model on inputs, by running it on some of them.

    Args:
        model: The model; run in evaluation mode, left as it is.
        inputs: All inputs that it will be run on, (N, ...), N >= 1.

    Raises:
        EvaluationError: It cannot; the error names the layer.
    """
    some = inputs[:PIECE]
    with evaluating(model):
        if not _holds(model, some, _run(model, some)):
            _require_one_batch(model, inputs)


def _run(model: nn.Module, inputs: Tensor) -> Outputs:
    try:
        return model(inputs)
    except (RuntimeError, ValueError) as error:
        raise EvaluationError(
            f"the model does not run on a batch of {len(inputs)} inputs {tuple(inputs.shape[1:])} ({error}): expected"
            " to run on any number; is the size of a batch written into it?"
        ) from error


def tensors(outputs: Outputs) -> list[Tensor]:
    """Return the tensors of a model's outputs, in order.

    Raises:
        EvaluationError: The outputs hold something that is no tensor.
    """
    if isinstance(outputs, Tensor):
        return [outputs]
    if outputs is None:
        return []
    if isinstance(outputs, Mapping):
        return [tensor for part in outputs.values() for tensor in tensors(part)]
    if isinstance(outputs, Sequence) and not isinstance(outputs, str):
        return [tensor for part in outputs for tensor in tensors(part)]
    raise EvaluationError(
        f"the model returns a {type(outputs).__name__}, expected a tensor, or a tuple, list or mapping of tensors"
    )


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Return the outputs for consecutive pieces of a batch as outputs for the batch.

    Args:
        parts: Outputs of one structure.
    """
    first = parts[0]
    if len(parts) == 1 or first is None:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        return _like(first, {key: joined([part[key] for part in parts]) for key in first})
    members = [joined(members) for members in zip(*parts, strict=True)]
    return type(first)(*members) if hasattr(first, "_fields") else type(first)(members)


def _like(outputs: Mapping[Any, Any], parts: dict[Any, Any]) -> Outputs:
    """Return parts as a mapping of the class of some outputs, such as one whose entries are attributes, too."""
    made: Any = type(outputs)
    return parts if made is dict else made(**parts)


def mapped(outputs: Outputs, function: Callable[[Tensor], Tensor]) -> Outputs:
    """Return outputs of the same structure, each tensor replaced.

    Args:
        outputs: Outputs of a model.
        function: Maps a tensor to its replacement.
    """
    if outputs is None or isinstance(outputs, Tensor):
        return None if outputs is None else function(outputs)
    if isinstance(outputs, Mapping):
        return _like(outputs, {key: mapped(part, function) for key, part in outputs.items()})
    members = [mapped(part, function) for part in outputs]
    return type(outputs)(*members) if hasattr(outputs, "_fields") else type(outputs)(members)


def _checked(model: nn.Module, answer: Callable[[Tensor], Outputs], batch: Tensor) -> Outputs | None:
    """Return the outputs for the first batch; None: they depend on how it is cut, so it must not be."""
    try:
        outputs = answer(batch)
    except (RuntimeError, ValueError):  # of layers that need more inputs, or a certain number
        if len(batch) <= 1:
            raise
        return None
    return outputs if _holds(model, batch, outputs) else None


def _holds(model: nn.Module, batch: Tensor, outputs: Outputs) -> bool:
    """Return whether some inputs, as a batch of their own, have the outputs that they have in the batch."""
    count = len(batch)
    if count == 1:
        return True
    if not _by_example(outputs, count):
        return False
    rows = slice(1, None, max(1, count // SAMPLE))  # other places in the batch, other neighbors
    try:
        alone = model(batch[rows])
    except (RuntimeError, ValueError):
        return False
    return _same([rows_of(tensor, count, rows) for tensor in tensors(outputs)], tensors(alone))


def _by_example(outputs: Outputs, count: int) -> bool:
    """Return whether the first axis of each output is that of the examples, or of them and their places in a row."""
    return all(tensor.ndim and len(tensor) and len(tensor) % count == 0 for tensor in tensors(outputs))


def rows_of(tensor: Tensor, count: int, rows: slice | Tensor) -> Tensor:
    """Return the part of a tensor that belongs to some of `count` examples; all of it, if it is not of examples.

    Args:
        tensor: Tensor (count, ...) or (count * L, ...).
        count: Number of examples.
        rows: Those wanted, as a slice or as indices.
    """
    if not tensor.ndim or not len(tensor) or len(tensor) % count:
        return tensor
    return tensor.reshape(count, -1, *tensor.shape[1:])[rows].flatten(0, 1)


def _same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(close(*pair) for pair in zip(left, right, strict=True))


def close(left: Tensor, right: Tensor) -> bool:
    """Return whether two outputs differ by rounding only; infinities and NaN must be in the same places.

    Sums in another order differ by some units in the last place of the largest entries, and these add up over layers:
    the tolerance is the root of the dtype's precision.

    Args:
        left: Tensor of any shape.
        right: Tensor to compare with it.
    """
    if left.shape != right.shape:
        return False
    if not left.is_floating_point():
        return torch.equal(left, right)
    tolerance = torch.finfo(left.dtype).eps ** 0.5
    first, second = left.double(), right.double()
    finite = first[first.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _require_one_batch(model: nn.Module, inputs: Tensor) -> None:
    """Check that a model is no different the second time, and that all inputs fit into one batch."""
    few = inputs[: 2 * SAMPLE] if len(inputs) > PIECE else inputs
    if not _same(tensors(_run(model, few)), tensors(_run(model, few))):
        raise BatchDependent(_explained(model, few))
    needed = 3 * _widest(model, few) * len(inputs) // len(few)
    if needed > WHOLE_BYTES:
        raise BatchDependent(
            f"{_explained(model, few)} A batch of all {len(inputs):,} examples would take about {needed / 1e9:.1f} GB,"
            f" the limit is {WHOLE_BYTES / 1e9:.1f}: make that layer independent of the batch, or give fewer examples."
        )


def _widest(model: nn.Module, inputs: Tensor) -> int:
    """Return the size of the largest output of a layer, in bytes."""
    return max(sum(tensor.nbytes for tensor in call.outputs) for call in _calls(model, inputs))


class _Call:
    """A call of a layer: its name, and the tensors that it was given and returned."""

    def __init__(self, name: str, given: list[Tensor], outputs: list[Tensor]) -> None:
        self.name, self.given, self.outputs = name, given, outputs


def _calls(model: nn.Module, inputs: Tensor) -> list[_Call]:
    """Return the calls of all layers in a forward pass, inner layers before those that hold them."""
    calls: list[_Call] = []

    def noting(name: str) -> Callable[..., None]:
        def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], outputs: Any) -> None:
            calls.append(_Call(name, _copies([*given, named]), _copies([outputs])))

        return note

    handles = [module.register_forward_hook(noting(name), with_kwargs=True) for name, module in model.named_modules()]
    try:
        model(inputs)
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


def _explained(model: nn.Module, inputs: Tensor) -> str:
    """Return a sentence that names the layer by which outputs depend on the batch, or on chance."""
    few = inputs[: 2 * SAMPLE]
    count, rows = len(few), slice(1, None, 2)
    try:
        calls = _calls(model, few)
        name = _culprit(calls, _calls(model, few), lambda tensor: tensor)
        if name is not None:
            return (
                f"in evaluation mode {_described(model, name)} does not answer the same inputs twice alike: does it"
                " call functional.dropout without training=self.training, draw random numbers, or keep something from"
                " one call to the next?"
            )
        name = _culprit(calls, _calls(model, few[rows]), lambda tensor: rows_of(tensor, count, rows))
    except (RuntimeError, ValueError) as error:
        return f"the model runs on a batch of {len(inputs)} inputs, but not on fewer of them ({error})."
    return (
        f"in evaluation mode the outputs of {_described(model, name or '')} for an input depend on the other inputs of"
        " its batch, as with batch normalization that keeps no running statistics (track_running_stats=False)."
    )


def _culprit(whole: list[_Call], part: list[_Call], sliced: Callable[[Tensor], Tensor]) -> str | None:
    """Return the first, innermost layer that returned something else for the same arguments; None: there is none."""
    for one, other in zip(whole, part, strict=False):
        given = _same([sliced(tensor) for tensor in one.given], other.given)
        if given and not _same([sliced(tensor) for tensor in one.outputs], other.outputs):
            return one.name
    return None


def _described(model: nn.Module, name: str) -> str:
    kind = type(model.get_submodule(name)).__name__
    return f"layer {name!r} ({kind})" if name else f"the model itself ({kind})"


@contextmanager
def _answering(model: nn.Module, device: torch.device, most: int) -> Iterator[Callable[[Tensor], Outputs]]:
    """Yield a function from a batch of inputs to outputs; on a CPU it splits the batch among threads.

    Args:
        model: Model in evaluation mode, on `device`.
        device: Device of the inputs.
        most: Largest number of inputs in a batch.
    """
    if device.type != "cpu":
        yield model
        return
    before = torch.get_num_threads()
    threads = min(before, -(-most // PIECE))
    models = [model, *(copy.deepcopy(model) for _ in range(threads - 1))]

    def part(number: int, pieces: Sequence[Tensor]) -> list[Outputs]:
        with torch.no_grad():  # the mode is local to a thread
            return [models[number](piece) for piece in pieces[number::threads]]

    def answer(inputs: Tensor) -> Outputs:
        pieces = even(inputs, PIECE)
        parts = list(pool.map(part, range(threads), [pieces] * threads))
        answers = [parts[number % threads][number // threads] for number in range(len(pieces))]
        if len(pieces) > 1 and not all(map(_by_example, answers, map(len, pieces))):
            raise ValueError("outputs have no axis of examples along which those of pieces could be joined")
        return joined(answers)

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield answer
    finally:
        torch.set_num_threads(before)
