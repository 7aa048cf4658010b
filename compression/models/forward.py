"""Outputs of a model for many inputs: computed in pieces, as if in one batch.

Law: the outputs are those of one forward pass over all inputs, up to rounding, whatever the size of the batches and the
number of threads. It rests on the outputs for an input not depending on the other inputs of its batch, which is checked
on some inputs of each call (`batch_dependence`). A model for which it does not hold, such as one with batch
normalization that keeps no running statistics, is run on all inputs at once, or refused if these are too many; one
whose outputs are never the same twice is refused. Both errors name the layer.

Stored inputs are padded batch by batch, and for them the law is about padding as well: the outputs for an input do not
depend on how far its batch is padded. That is checked on some of them, each padded to its own length.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from fedpress.compression.models import batch_dependence
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.batch_dependence import CPU, PIECE
from fedpress.compression.models.inputs import Batch, Inputs
from fedpress.compression.models.outputs import Outputs, tensors


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
                batch_dependence.require_one_batch(model, inputs, device)
                whole = model_inputs.to(model_inputs.take(inputs, slice(None)), device)
                yield Answered(slice(0, model_inputs.count(inputs)), model_inputs.call(model, whole), whole)
                return
            batch_dependence.require_padding_ignored(model, inputs, moved, outputs)
        else:
            outputs = answer(moved)
        yield Answered(rows, outputs, moved)
        start = rows.stop


def _checked(model: nn.Module, answer: Callable[[Batch], Outputs], batch: Batch) -> Outputs | None:
    """Return the outputs for the first batch; None: they depend on how it is cut, so it must not be."""
    try:
        outputs = answer(batch)
    except (RuntimeError, ValueError):  # of layers that need more inputs, or a certain number
        if model_inputs.count(batch) <= 1:
            raise
        return None
    return outputs if batch_dependence.holds(model, batch, outputs) else None


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
        if len(pieces) > 1 and not all(map(batch_dependence.by_example, answers, map(model_inputs.count, pieces))):
            raise ValueError("outputs have no axis of examples along which those of pieces could be joined")
        return model_outputs.joined(answers)

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield answer
    finally:
        torch.set_num_threads(before)


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
