"""Task, the interface that a user implements: a model, its data in four parts, a loss.

Each part of `Splits` has one use, so that reported figures are unbiased: clients train on `train`; students are
distilled on `proxy`, whose labels stay hidden unless a scenario reveals them; every choice (early stopping, a rate, a
budget) is made on `validation`; `test` is read for reporting only. `disjoint` checks that no example is in two parts.

>>> import torch
>>> from torch import nn
>>> class Signs(Task):
...     name = "signs"
...     def model(self):
...         return nn.Linear(1, 2)
...     def data(self):
...         numbers = torch.linspace(-1, 1, 8).reshape(8, 1)
...         part = Examples(numbers, (numbers[:, 0] > 0).long())
...         return Splits(part, part, part, part)
>>> model = Signs().model()
>>> _ = model.load_state_dict({"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.zeros(2)})
>>> evaluate(model, Signs(), Signs().data().test).accuracy
1.0
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression.errors import FedpressError
from fedpress.compression.models.reproducible import evaluating


class DeviceError(FedpressError, ValueError):
    """The machine lacks the device to train or evaluate on."""


class Examples(NamedTuple):
    """Examples held in memory.

    Attributes:
        inputs: Inputs of the model, (N, ...): float32, or int64 where it looks up embeddings.
        targets: Labels, int64: one for each example, (N,), or a sequence of L, (N, L).
    """

    inputs: Tensor
    targets: Tensor

    def take(self, indices: NDArray[np.int64] | Tensor) -> Examples:
        """Return a copy of the examples at `indices`, int64 (M,), in that order."""
        rows = torch.as_tensor(indices)
        return Examples(self.inputs[rows], self.targets[rows])


class Splits(NamedTuple):
    """The data of a task: four parts that share no example; the module's docstring says what each is for."""

    train: Examples
    proxy: Examples
    validation: Examples
    test: Examples


class Task(ABC):
    """A model, its data and its loss.

    A subclass defines `name`, `model` and `data`. It may override `loss` and `correct`, which by default are those of
    classification with one label an example, `groups` and `students`. Every worker process makes an instance, so
    constructors should be cheap and `data` should load on its first call.
    """

    name: str

    @abstractmethod
    def model(self) -> nn.Module:
        """Return a fresh model with its initial weights and buffers.

        What it returns is where training begins, tensor by tensor: weights that are brought along, such as a pretrained
        backbone's, or drawn from the generators of torch, numpy or Python, which the caller seeds. Clients make the
        same model under the same seed, and are sent it where theirs differs. Parameters with `requires_grad=False` are
        not trained and end as they began.
        """

    @abstractmethod
    def data(self) -> Splits:
        """Return the four parts; the same tensors on every call, never written to."""

    def groups(self) -> NDArray[np.int64] | None:
        """Return the owner of each training example as a number, (N,): of a writer, a book, a device.

        The partition `natural` makes a client of each owner. None, the default: the data have no owners.
        """
        return None

    def students(self) -> Mapping[str, Callable[[], nn.Module]]:
        """Return student architectures besides the pruned model, by name; each function returns a fresh model.

        A tier names one, and a client rebuilds it from the name and the shapes in the bundle. Inputs and outputs have
        the shapes of the task's model. Empty, the default: every student is the model, pruned.
        """
        return {}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar; by default the cross-entropy.

        Args:
            outputs: Outputs of the model, by default logits (N, classes).
            targets: Labels, by default int64 (N,).
        """
        return nn.functional.cross_entropy(outputs, targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return whether each answer is right, bool, of the targets' shape; by default by the largest logit.

        Args:
            outputs: Outputs of the model, by default logits (N, classes).
            targets: Labels, by default int64 (N,).
        """
        return outputs.argmax(dim=1) == targets


PIECE = 64
"""Examples in a forward pass on a CPU."""


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, accuracy as a fraction of all answers, and the number of examples."""

    loss: float
    accuracy: float
    count: int


def evaluate(
    model: nn.Module, task: Task, examples: Examples, batch_size: int = 512, device: str | torch.device = "cpu"
) -> Evaluation:
    """Return mean loss and accuracy of a model, in evaluation mode and without gradients.

    All answers that `task.correct` judges have equal weight: one an example, or one for each place of a sequence. Each
    module's training mode is restored; the model stays on `device`.

    Args:
        model: Model to evaluate.
        task: Task whose `loss` and `correct` are applied.
        examples: Labeled examples (N, ...).
        batch_size: Examples in a batch; the result depends on it by rounding only.
        device: "cpu" or "cuda".

    Raises:
        ValueError: There are no examples.
        DeviceError: The machine lacks the device.
    """
    count = len(examples.targets)
    if count == 0:
        raise ValueError("evaluate: got 0 examples, expected at least 1; is this split of the task empty?")
    loss, right, answers, device = 0.0, 0, 0, usable(device)
    with evaluating(model.to(device)), _answering(model, device, min(batch_size, count)) as answer:
        for start in range(0, count, batch_size):
            inputs = examples.inputs[start : start + batch_size].to(device)
            targets = examples.targets[start : start + batch_size].to(device)
            outputs = answer(inputs)
            loss += float(task.loss(outputs, targets)) * len(targets)
            correct = task.correct(outputs, targets)
            right += int(correct.sum())
            answers += correct.numel()
    return Evaluation(loss / count, right / answers, count)


def usable(device: str | torch.device) -> torch.device:
    """Return a device, "cpu" or "cuda", after checking that the machine has it.

    Raises:
        DeviceError: The machine lacks the device.
    """
    checked = torch.device(device)
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError("training.device is 'cuda', but torch finds no CUDA device on this machine; use 'cpu'")
    return checked


@contextmanager
def _answering(model: nn.Module, device: torch.device, most: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function from a batch of inputs to outputs; on a CPU it splits the batch among threads.

    Small pieces stay in the processor's cache, and threads that share nothing do not wait for each other: evaluation of
    the CNN of Fashion-MNIST takes half the time. Each thread has a copy of the model, which may write into itself.

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

    def part(number: int, pieces: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():  # the mode is local to a thread
            return [models[number](piece) for piece in pieces[number::threads]]

    def answer(inputs: Tensor) -> Tensor:
        pieces = list(torch.split(inputs, PIECE))
        parts = list(pool.map(part, range(threads), [pieces] * threads))
        return torch.cat([parts[number % threads][number // threads] for number in range(len(pieces))])

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield answer
    finally:
        torch.set_num_threads(before)


def check_splits(splits: Splits) -> None:
    """Check that the four parts fit together: not empty, one target an input, equal shapes and dtypes.

    Overlap cannot be detected in the examples themselves, because real data holds equal images under different indices;
    a task checks the indices that it splits by with `disjoint`.

    Raises:
        ValueError: A part is empty, has inputs without targets, or differs in shape or dtype from `train`.
    """
    for name, part in splits._asdict().items():
        if len(part.inputs) != len(part.targets):
            raise ValueError(
                f"split {name!r}: {len(part.inputs)} inputs but {len(part.targets)} targets, expected one target for"
                " each input; were only the inputs shuffled or cut?"
            )
        if len(part.targets) == 0:
            raise ValueError(
                f"split {name!r}: got 0 examples, expected at least 1; is the hold-out larger than the data?"
            )
        got, expected = _form(part), _form(splits.train)
        if got != expected:
            raise ValueError(
                f"split {name!r}: examples are {got}, but those of 'train' are {expected}; was one part left"
                " unnormalized or in another layout?"
            )


def disjoint(*index_sets: NDArray[np.integer[Any]]) -> None:
    """Check that no index is in two of the sets, nor twice in one.

    >>> disjoint(np.array([0, 1]), np.array([2, 3]))
    >>> disjoint(np.array([0, 1]), np.array([1, 3]))
    Traceback (most recent call last):
    ValueError: index sets 0 and 1 share 1 example, the first is 1: expected none; a held-out part leaks into another

    Args:
        index_sets: Integer arrays of any length that index one and the same data set.

    Raises:
        ValueError: Two sets share an index, or one holds an index twice.
    """
    for number, indices in enumerate(index_sets):
        if len(np.unique(indices)) != len(indices):
            raise ValueError(
                f"index set {number} holds an index twice: expected each once; was it drawn with replacement?"
            )
    for (first, left), (second, right) in combinations(enumerate(index_sets), 2):
        shared = np.intersect1d(left, right)
        if len(shared):
            examples = "example" if len(shared) == 1 else "examples"
            raise ValueError(
                f"index sets {first} and {second} share {len(shared)} {examples}, the first is {shared[0]}:"
                " expected none; a held-out part leaks into another"
            )


def _form(part: Examples) -> str:
    inputs, targets = part.inputs, part.targets
    return f"{inputs.dtype} {tuple(inputs.shape[1:])} with targets {targets.dtype} {tuple(targets.shape[1:])}"
