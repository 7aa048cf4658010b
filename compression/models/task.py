"""What a user supplies: a model, its data in four parts, a loss.

The four parts of `Splits` keep claims honest: clients train on `train`; students are distilled on `proxy`, whose
labels stay hidden unless a scenario asks for them; every choice (early stopping, a rate, a budget) is made on
`validation`; `test` is read for reporting only. `disjoint` proves that no example is in two of them.

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
    """This machine has no such device to train or to evaluate on."""


class Examples(NamedTuple):
    """Examples held in memory.

    Attributes:
        inputs: What the model is called with, of shape (N, ...): float32, or int64 where it looks up embeddings.
        targets: What it should answer, int64: one label for each example, (N,), or a sequence of L of them, (N, L).
    """

    inputs: Tensor
    targets: Tensor

    def take(self, indices: NDArray[np.int64] | Tensor) -> Examples:
        """The examples at `indices`, int64 of shape (M,), in that order, as a copy."""
        chosen = torch.as_tensor(indices)
        return Examples(self.inputs[chosen], self.targets[chosen])


class Splits(NamedTuple):
    """The data of a task: four parts that share no example (the module's docstring says what each is for)."""

    train: Examples
    proxy: Examples
    validation: Examples
    test: Examples


class Task(ABC):
    """A model, its data and its loss.

    A subclass gives `name`, `model` and `data`, and may replace `loss` and `correct`, whose defaults are those of
    classification with one label for each example, `groups` and `students`. Instances are made in every worker process,
    so constructors are cheap and `data` loads on its first call.
    """

    name: str

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model with weights drawn from torch's generator, which the caller seeds."""

    @abstractmethod
    def data(self) -> Splits:
        """The four parts; the same tensors on every call, never written to."""

    def groups(self) -> NDArray[np.int64] | None:
        """Whose each training example is, (N,), equal numbers for one owner: a writer, a book, a device.

        The partition `natural` gives each of them a client. None, the default: the data do not say.
        """
        return None

    def students(self) -> Mapping[str, Callable[[], nn.Module]]:
        """Architectures of students besides the pruned model, by name: each makes a fresh one, as `model` does.

        A tier names one, and a client rebuilds it from the name and the shapes in the bundle. They take the task's
        inputs and answer in the shape of its model. None, the default: every student is the model, pruned.
        """
        return {}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar: by default cross-entropy of logits (N, classes) and labels (N,)."""
        return nn.functional.cross_entropy(outputs, targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Which answers are right, bool, of the targets' shape: by default those whose largest logit is the label's."""
        return outputs.argmax(dim=1) == targets


PIECE = 64
"""Examples that a model answers at once on a CPU."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` saw: mean loss, accuracy as a fraction of all answers, and the number of examples."""

    loss: float
    accuracy: float
    count: int


def evaluate(
    model: nn.Module, task: Task, examples: Examples, batch_size: int = 512, device: str | torch.device = "cpu"
) -> Evaluation:
    """Mean loss and accuracy of a model, in evaluation mode and without gradients.

    Each answer that `task.correct` judges counts alike: one an example, or one for each place of a sequence.
    The modules' training modes are put back afterwards, each its own; the model stays on `device`.

    Raises:
        ValueError: There are no examples.
        DeviceError: This machine has no such device.
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
    """Return the device, "cpu" or "cuda".

    Raises:
        DeviceError: This machine has no such device.
    """
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError("training.device is 'cuda', but torch finds no CUDA device on this machine; use 'cpu'")
    return chosen


@contextmanager
def _answering(model: nn.Module, device: torch.device, most: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function from at most so many inputs to outputs: on a CPU piece by piece, a thread each.

    Small pieces stay in the processor's cache, and threads that share nothing do not wait for each other: the CNN of
    Fashion-MNIST takes half the time. Each thread has a copy of the model, since it may write into itself.
    """
    if device.type != "cpu":
        yield model
        return
    before = torch.get_num_threads()
    threads = min(before, -(-most // PIECE))
    models = [model, *(copy.deepcopy(model) for _ in range(threads - 1))]

    def part(number: int, pieces: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():  # is a thread's own
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
    """Check that the four parts fit together: filled, one target an input, the same shapes and dtypes.

    Overlap cannot be told from the examples themselves (real data holds equal images under different indices); a task
    proves it on the indices it splits by, with `disjoint`.

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
