"""Outputs of a model for many inputs: computed in pieces, as if in one batch.

Law: the outputs are those of one forward pass over all inputs, up to rounding, whatever the size of the batches and the
number of threads. It rests on the outputs for an input not depending on the other inputs of its batch, which is checked
on some inputs of each call. A model for which it does not hold, such as one with batch normalization that keeps no
running statistics, is run on all inputs at once, or refused if these are too many; one whose outputs are never the same
twice is refused. Both errors name the layer.

Stored inputs are padded batch by batch, and for them the law is about padding as well: the outputs for an input do not
depend on how far its batch is padded. That is checked on some of them, each padded to its own length.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.inputs import Batch, Inputs
from fedpress.compression.models.outputs import EvaluationError as EvaluationError
from fedpress.compression.models.outputs import Outputs, rows_of, same, tensors
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


class Answered(NamedTuple):
    """A batch and the outputs for it.

    Attributes:
        rows: Its rows among all inputs.
        outputs: The model's outputs.
        batch: The inputs, on the model's device.
    """

    rows: slice
    outputs: Outputs
    batch: Batch


@contextmanager
def batches(
    model: nn.Module, inputs: Inputs, batch_size: int = 512, device: torch.device = CPU
) -> Iterator[Iterator[Answered]]:
    """Yield an iterator over the batches, in order, with the model's outputs for them.

    On a CPU, batches are run in pieces on several threads: small pieces stay in the processor's cache, and threads that
    share nothing do not wait for each other. Each thread has a copy of the model, which may write into itself. No piece
    is of one input, unless `batch_size` is 1 or there is but one, because some layers treat a single input otherwise.

    Args:
        model: Model in evaluation mode, on `device`; gradients are switched off.
        inputs: Inputs (N, ...), N >= 1, on any device.
        batch_size: Largest number of inputs in a batch.
        device: Device of the model.

    Raises:
        BatchDependent: Outputs depend on the batch and the inputs are too many for one, on the padding, or they are
            random.
    """
    with _answering(model, device, min(batch_size, model_inputs.count(inputs))) as answer:
        yield _batches(model, answer, inputs, batch_size, device)


def _batches(
    model: nn.Module,
    answer: Callable[[Batch], Outputs],
    inputs: Inputs,
    batch_size: int,
    device: torch.device,
) -> Iterator[Answered]:
    start = 0
    for batch in model_inputs.pieces(inputs, batch_size):
        moved, rows = model_inputs.to(batch, device), slice(start, start + model_inputs.count(batch))
        if start == 0:
            outputs = _checked(model, answer, moved)
            if outputs is None:
                _require_one_batch(model, inputs, device)
                whole = model_inputs.to(model_inputs.take(inputs, slice(None)), device)
                yield Answered(slice(0, model_inputs.count(inputs)), model_inputs.call(model, whole), whole)
                return
            _require_padding_ignored(model, inputs, moved, outputs)
        else:
            outputs = answer(moved)
        yield Answered(rows, outputs, moved)
        start = rows.stop


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
        if not _holds(model, some, outputs):
            raise BatchDependent(_explained(model, some))
        _require_padding_ignored(model, inputs, some, outputs)


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
        if not _holds(model, some, outputs):
            _require_one_batch(model, inputs, CPU)
        else:
            _require_padding_ignored(model, inputs, some, outputs)


def doubled(batch: Batch) -> Batch:
    """Return sequences followed by themselves, of tensors by name.

    Args:
        batch: Inputs in memory, of which `inputs.length` is known.
    """
    size = model_inputs.length(batch)
    return {
        name: torch.cat([part, part], dim=1) if part.ndim > 1 and part.shape[1] == size else part
        for name, part in batch.items()
    }


def free_axes(model: nn.Module, example: Batch) -> set[int] | None:
    """Return the axes of the answers whose size is that of sequences, of which the model takes other lengths.

    Args:
        model: The model, in evaluation mode.
        example: Batch of inputs, (N, ...).

    Returns:
        The axes; None: the inputs are no sequences by name, or the model takes one length only.
    """
    size = model_inputs.length(example)
    if size is None:
        return None
    pairs = (model_inputs.shortened(example, size - 1), example) if size > 1 else (example, doubled(example))
    try:
        with torch.no_grad():
            shorter, whole = (tensors(model_outputs.answers(model_inputs.call(model, batch)))[0] for batch in pairs)
    except (IndexError, RuntimeError, TypeError, ValueError):
        return None
    if whole.ndim != shorter.ndim:
        return None
    return {axis for axis, (one, other) in enumerate(zip(whole.shape, shorter.shape, strict=True)) if one != other}


def _run(model: nn.Module, batch: Batch) -> Outputs:
    try:
        return model_inputs.call(model, batch)
    except (RuntimeError, ValueError) as error:
        raise EvaluationError(
            f"the model does not run on a batch of {model_inputs.count(batch)} inputs {model_inputs.form(batch)}"
            f" ({error}): expected to run on any number; is the size of a batch written into it?"
        ) from error


def _checked(model: nn.Module, answer: Callable[[Batch], Outputs], batch: Batch) -> Outputs | None:
    """Return the outputs for the first batch; None: they depend on how it is cut, so it must not be."""
    try:
        outputs = answer(batch)
    except (RuntimeError, ValueError):  # of layers that need more inputs, or a certain number
        if model_inputs.count(batch) <= 1:
            raise
        return None
    return outputs if _holds(model, batch, outputs) else None


def _holds(model: nn.Module, batch: Batch, outputs: Outputs) -> bool:
    """Return whether some inputs, as a batch of their own, have the outputs that they have in the batch."""
    count = model_inputs.count(batch)
    if count == 1:
        return True
    if not _by_example(outputs, count):
        return False
    rows = slice(1, None, max(1, count // SAMPLE))  # other places in the batch, other neighbors
    try:
        alone = model_inputs.call(model, model_inputs.take(batch, rows))
    except (RuntimeError, ValueError):
        return False
    return same([rows_of(tensor, count, rows) for tensor in tensors(outputs)], tensors(alone))


def _require_padding_ignored(model: nn.Module, inputs: Inputs, batch: Batch, outputs: Outputs) -> None:
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


def _by_example(outputs: Outputs, count: int) -> bool:
    """Return whether the first axis of each output is that of the examples, or of them and their places in a row."""
    return all(tensor.ndim and len(tensor) and len(tensor) % count == 0 for tensor in tensors(outputs))


def _require_one_batch(model: nn.Module, inputs: Inputs, device: torch.device) -> None:
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


@contextmanager
def _answering(model: nn.Module, device: torch.device, most: int) -> Iterator[Callable[[Batch], Outputs]]:
    """Yield a function from a batch of inputs to outputs; on a CPU it splits the batch among threads.

    Args:
        model: Model in evaluation mode, on `device`.
        device: Device of the inputs.
        most: Largest number of inputs in a batch.
    """
    if device.type != "cpu":
        yield lambda batch: model_inputs.call(model, batch)
        return
    before = torch.get_num_threads()
    threads = min(before, -(-most // PIECE))
    models = [model, *(copy.deepcopy(model) for _ in range(threads - 1))]

    def part(number: int, pieces: Sequence[Batch]) -> list[Outputs]:
        with torch.no_grad():  # the mode is local to a thread
            return [model_inputs.call(models[number], piece) for piece in pieces[number::threads]]

    def answer(batch: Batch) -> Outputs:
        pieces = list(model_inputs.pieces(batch, PIECE))
        parts = list(pool.map(part, range(threads), [pieces] * threads))
        answers = [parts[number % threads][number // threads] for number in range(len(pieces))]
        if len(pieces) > 1 and not all(map(_by_example, answers, map(model_inputs.count, pieces))):
            raise ValueError("outputs have no axis of examples along which those of pieces could be joined")
        return model_outputs.joined(answers)

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield answer
    finally:
        torch.set_num_threads(before)
