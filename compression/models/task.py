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

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression.errors import FedpressError
from fedpress.compression.models import batch_dependence, forward
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.inputs import Batch, Inputs
from fedpress.compression.models.outputs import IGNORED as IGNORED
from fedpress.compression.models.outputs import EvaluationError, Outputs, class_second, fitted
from fedpress.compression.models.reproducible import evaluating

NO_TARGETS: Final = (
    "none of the targets of {:,} examples counts, so there is no accuracy; are all of them -100, the label of places"
    " without a target?"
)
LOSS_BYTES: Final = 1 << 26
"""Outputs that are kept for one call of the loss, in bytes."""


class DeviceError(FedpressError, ValueError):
    """The machine lacks the device to train or evaluate on."""


class Examples(NamedTuple):
    """Examples, whose targets are held in memory.

    Attributes:
        inputs: Inputs of the model, (N, ...): a tensor, float32, or int64 where it looks up embeddings; tensors by the
            name of the model's argument; or `inputs.Stored`, such as texts on a disk.
        targets: Labels, int64: one for each example, (N,), or a sequence of L, (N, L), `IGNORED` where there is none;
            or what the task's own `loss` and `correct` take.
    """

    inputs: Inputs
    targets: Tensor

    def take(self, indices: NDArray[np.int64] | Tensor | slice) -> Examples:
        """Return the examples at `indices`, int64 (M,), in that order: a copy, and a view of what is stored."""
        rows = indices if isinstance(indices, slice) else torch.as_tensor(indices)
        return Examples(model_inputs.subset(self.inputs, rows), self.targets[rows])

    def batch(self, indices: Tensor | slice) -> tuple[Batch, Tensor]:
        """Return inputs and targets of some examples, in memory.

        Args:
            indices: Indices, int64 (M,), or a slice.
        """
        return model_inputs.take(self.inputs, indices), self.targets[indices]


class Splits(NamedTuple):
    """The data of a task: four parts that share no example; the module's docstring says what each is for."""

    train: Examples
    proxy: Examples
    validation: Examples
    test: Examples


class Task(ABC):
    """A model, its data and its loss.

    A subclass defines `name`, `model` and `data`. It may override `loss` and `correct`, which by default are those of
    classification, `scored`, `groups` and `students`. Every worker process makes an instance, so
    constructors should be cheap and `data` should load on its first call.
    """

    name: str

    @abstractmethod
    def model(self) -> nn.Module:
        """Return a fresh model with its initial weights and buffers.

        What it returns is where training begins, tensor by tensor: weights that are brought along, such as a pretrained
        backbone's, or drawn from the generators of torch, numpy or Python, which the caller seeds. Clients make the
        same model under the same seed, and are sent it where theirs differs. Parameters with `requires_grad=False` are
        not trained and end as they began (`trainable` in a scenario says otherwise).
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

    def loss(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar; by default the cross-entropy, without targets that are `IGNORED`.

        Of one output an example, with targets that are fractions, it is the mean squared error.

        Args:
            outputs: Outputs of the model, by default logits (N, classes), or (N, classes, L) for sequences; or a
                mapping with the entry `logits`, (N, classes) or (N, L, classes), as Hugging Face's models return it.
            targets: Labels, by default int64 (N,) or (N, L), or probabilities of the classes.

        Raises:
            EvaluationError: The outputs are no logits.
        """
        logits = _logits(outputs, "loss")
        if targets.is_floating_point() and logits.numel() == len(targets) == targets.numel():
            return nn.functional.mse_loss(logits.reshape(targets.shape), targets)
        if targets.is_floating_point():
            return nn.functional.cross_entropy(logits, targets)
        total = nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        return total / (targets != IGNORED).sum().clamp(min=1)  # a batch without any target has a loss of 0, not NaN

    def correct(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """Return whether each answer is right, bool, of the targets' shape; by default by the largest logit.

        Where the shape is that of the targets, `scored` says which answers count; a task may also return only those
        that do, or one an example.

        Args:
            outputs: Outputs of the model, as for `loss`.
            targets: Labels, by default int64 (N,) or (N, L), or the probabilities of the classes.

        Raises:
            EvaluationError: The default does not fit the outputs or targets.
        """
        return _likeliest(outputs, targets)

    def scored(self, targets: Tensor) -> Tensor:
        """Return which targets count in accuracies and means, bool, of their shape; by default all but `IGNORED`.

        Args:
            targets: Targets of a batch.
        """
        return has_target(targets)


def has_target(targets: Tensor) -> Tensor:
    """Return which targets are there, bool, of their shape: whole numbers other than `IGNORED`, and all fractions.

    >>> has_target(torch.tensor([[3, -100]]))
    tensor([[ True, False]])
    """
    return torch.ones_like(targets, dtype=torch.bool) if targets.is_floating_point() else targets != IGNORED


def _logits(outputs: Outputs, method: str) -> Tensor:
    """Return the answers with the classes second."""
    logits = class_second(outputs)
    if isinstance(logits, Tensor):
        return logits
    entries = f" of {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
    raise EvaluationError(
        f"the model returns a {type(outputs).__name__}{entries}, and the task has the default `{method}`, which takes"
        " logits, or a mapping with the entry `logits`: override `loss` and `correct`"
    )


def _likeliest(given: Outputs, targets: Tensor) -> Tensor:
    """Return whether the largest logit is that of the label."""
    outputs = _logits(given, "correct")
    labels = targets
    if targets.is_floating_point():
        if targets.shape != outputs.shape or targets.ndim < 2 or not class_probabilities(targets):
            raise EvaluationError(
                f"targets are {targets.dtype} {tuple(targets.shape)}, and the task has the default `correct`, which"
                " compares the largest logit with a label: override it to say which answers count as right, such as"
                " (outputs - targets).abs() < 0.1 of numbers, (outputs > 0) == (targets > 0.5) of several labels an"
                " example"
            )
        labels = targets.argmax(dim=1)
    answers = outputs.argmax(dim=1) if outputs.ndim > 1 else outputs
    if answers.shape != labels.shape:
        raise EvaluationError(
            f"outputs of shape {tuple(outputs.shape)} for targets of {tuple(targets.shape)}: the default `correct`"
            " expects logits (N, classes) for targets (N,), and (N, classes, L) for (N, L), or (N, L, classes) in a"
            " mapping {'logits': ...}; override it for others"
        )
    return answers == labels


def class_probabilities(values: Tensor) -> bool:
    """Return whether values (N, classes, ...) are probabilities of the classes: none below zero, sums of 1.

    >>> class_probabilities(torch.tensor([[0.3, 0.7]])), class_probabilities(torch.tensor([[0.3, 1.0]]))
    (True, False)

    Args:
        values: Outputs of a model, or targets.
    """
    sums = values.sum(dim=1)
    return bool((values >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


@dataclass(frozen=True)
class Evaluation:
    """Figures of a model on some examples; `right` and `answers` of disjoint sets of examples add up.

    Attributes:
        loss: Loss of all examples as one batch.
        accuracy: `right` as a fraction of `answers`.
        count: Number of examples.
        answers: Number of answers that count: one an example, or one for each place of a sequence that has a target.
        right: Number of those that are right.
    """

    loss: float
    accuracy: float
    count: int
    answers: int = 0
    right: float = 0.0


def evaluate(
    model: nn.Module, task: Task, examples: Examples, batch_size: int = 512, device: str | torch.device = "cpu"
) -> Evaluation:
    """Return loss and accuracy of a model, in evaluation mode and without gradients.

    Law: the figures are those of one batch of all examples, up to rounding, whatever `batch_size` and the number of
    threads, or an error says why they are not. All answers that count have equal weight (`Task.scored`). Each module's
    training mode is restored; the model stays on `device`.

    Args:
        model: Model to evaluate.
        task: Task whose `loss`, `correct` and `scored` are applied.
        examples: Labeled examples (N, ...).
        batch_size: Largest number of examples in a forward pass.
        device: "cpu" or "cuda".

    Raises:
        ValueError: There are no examples.
        EvaluationError: The model's outputs are not defined example by example (`BatchDependent`), no answer
            counts, or the loss is no mean and the outputs are too many for one call.
        DeviceError: The machine lacks the device.
    """
    count = len(examples.targets)
    if count == 0:
        raise ValueError("evaluate: got 0 examples, expected at least 1; is this split of the task empty?")
    device = usable(device)
    right, answers, loss = 0.0, 0, _Loss(task)
    with evaluating(model.to(device)), forward.batches(model, examples.inputs, batch_size, device) as batches:
        for rows, outputs, batch in batches:
            targets = fitted(examples.targets[rows].to(device), outputs, batch)
            scores = scores_of(task, outputs, targets)
            right += float(scores.double().sum())
            answers += scores.numel()
            loss.add(outputs, targets)
        if answers == 0:
            raise EvaluationError(NO_TARGETS.format(count))
        value = loss.value()
    return Evaluation(value, right / answers, count, answers, right)


def require_evaluable(model: nn.Module, task: Task, examples: Examples) -> None:
    """Check before the first round that a model can be evaluated after it, on a few of the examples.

    Args:
        model: Model with any weights, on the CPU; left as it is.
        task: Task that judges.
        examples: Labeled examples (N, ...), N >= 1.

    Raises:
        EvaluationError: It cannot: as of `evaluate`, or something that the model or the task raises.
    """
    scored = task.scored(examples.targets)
    with_answer = scored.reshape(len(scored), -1).any(dim=1).nonzero()[: batch_dependence.PIECE, 0]
    if not len(with_answer):
        raise EvaluationError(NO_TARGETS.format(len(scored)))
    batch_dependence.require_evaluable(model, examples.inputs)
    evaluate(model, task, examples.take(with_answer))


def scores_of(task: Task, outputs: Outputs, targets: Tensor) -> Tensor:
    """Return whether each answer that counts is right, as `Task.correct` says, flattened to (A,).

    Args:
        task: Task that judges.
        outputs: Outputs for a batch of N examples.
        targets: Their targets, (N, ...).

    Raises:
        EvaluationError: There are more judgments than targets.
    """
    correct = task.correct(outputs, targets)
    if correct.shape == targets.shape:
        return correct[task.scored(targets)]
    if correct.numel() > targets.numel():
        raise EvaluationError(
            f"{type(task).__name__}.correct returns {tuple(correct.shape)} for targets of {tuple(targets.shape)}:"
            " expected their shape, or fewer answers; was a shape broadcast, as (N,) == (N, 1) is?"
        )
    return correct.flatten()


def class_axis(task: Task, outputs: Outputs, targets: Tensor) -> int | None:
    """Return the axis of the outputs along which a task looks for the likeliest class; None: its outputs are no logits.

    The task is asked: it must find outputs right that are 1 at the label, and 0 elsewhere.

    Args:
        task: Task that judges.
        outputs: Outputs of its model, (N, ...), or with an entry `logits`, of whose axes one is meant.
        targets: Their targets, (N, ...), of which shape and dtype are used.
    """
    logits = model_outputs.answers(outputs)
    if not isinstance(logits, Tensor) or targets.is_floating_point() or logits.ndim < 2:
        return None
    shape = logits.shape
    draw = torch.Generator().manual_seed(0)
    for axis in dict.fromkeys((1, len(shape) - 1)):
        if shape[:axis] + shape[axis + 1 :] != targets.shape:
            continue
        labels = torch.randint(shape[axis], targets.shape, generator=draw).to(targets.dtype)
        certain = torch.zeros(shape).scatter_(axis, labels.long().unsqueeze(axis), 1.0)
        try:
            scores = scores_of(task, model_outputs.with_answers(outputs, certain), labels)
        except (IndexError, RuntimeError, TypeError, ValueError):  # it is for outputs of another layout
            continue
        if scores.numel() and bool((scores == 1).all()):
            return axis
    return None


def class_axis_of(model: nn.Module, task: Task) -> int | None:
    """Return the axis of a model's outputs along which its task looks for the likeliest class; None: for none.

    Args:
        model: The model; run in evaluation mode, left as it is.
        task: Task that judges, and has validation data.
    """
    batch, targets = task.data().validation.batch(slice(0, 4))
    with evaluating(model):
        outputs = model_inputs.call(model, batch)
    return class_axis(task, outputs, fitted(targets, outputs, batch))


class _Loss:
    """Loss of all examples as one batch, from their outputs batch by batch.

    It is computed by one call, which is right for any loss. Outputs beyond `LOSS_BYTES` are not kept: from there on
    the loss must be a mean over examples or over answers, which each batch is tested for.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._kept: list[tuple[Outputs, Tensor]] = []
        self._bytes = 0
        self._sums: dict[str, list[float]] | None = None  # weighted sum and weight, by what may be averaged over

    def add(self, outputs: Outputs, targets: Tensor) -> None:
        """Take in a batch."""
        self._kept.append((outputs, targets))
        self._bytes += sum(tensor.nbytes for tensor in model_outputs.tensors(outputs))
        unlike = targets.is_floating_point() and targets.shape[1:] != self._kept[0][1].shape[1:]  # no target is none
        if len(self._kept) > 1 and (self._bytes > LOSS_BYTES or unlike):
            if self._sums is None:
                self._sums = {"answers": [0.0, 0.0], "examples": [0.0, 0.0]}
            for batch in self._kept:
                self._average(self._sums, *batch)
            self._kept.clear()

    def value(self) -> float:
        """Return the loss of all batches."""
        if self._sums is None:
            outputs = model_outputs.joined([outputs for outputs, _ in self._kept])
            targets = model_outputs.padded([targets for _, targets in self._kept], IGNORED)
            return float(self._task.loss(outputs, targets))
        for batch in self._kept:
            self._average(self._sums, *batch)
        total, weight = next(iter(self._sums.values()))
        return total / weight if weight else float("nan")

    def _average(self, sums: dict[str, list[float]], outputs: Outputs, targets: Tensor) -> None:
        """Add a batch, and drop the means that the loss is not."""
        whole = float(self._task.loss(outputs, targets))
        count = len(targets)
        counting = self._task.scored(targets).reshape(count, -1).sum(dim=1)
        # Parts of unlike labels and lengths.
        order = torch.argsort(targets.reshape(count, -1)[:, 0].double() + counting)

        def of(rows: Tensor) -> tuple[float, float, int]:
            some = model_outputs.mapped(outputs, lambda tensor: model_outputs.rows_of(tensor, count, rows))
            return float(self._task.loss(some, targets[rows])), float(counting[rows].sum()), len(rows)

        halves = [order[: count // 3], order[count // 3 :]] if count > 2 else []
        parts = [of(half) for half in halves]
        for name, position in (("answers", 1), ("examples", 2)):
            if name not in sums:
                continue
            weighted = [(part[0], part[position]) for part in parts if part[position]]
            mean = sum(value * weight for value, weight in weighted) / max(1, sum(weight for _, weight in weighted))
            if parts and math.isfinite(whole) and not math.isclose(mean, whole, rel_tol=1e-4, abs_tol=1e-6):
                del sums[name]
                continue
            weight = float(counting.sum()) if name == "answers" else float(count)
            sums[name][0] += whole * weight if weight else 0.0
            sums[name][1] += weight
        if not sums:
            raise EvaluationError(
                f"{type(self._task).__name__}.loss is no mean over examples or answers: that of a batch is not the mean"
                f" of its parts. It can be computed for {LOSS_BYTES / 1e6:.0f} MB of outputs at once, and there are"
                " more: evaluate fewer examples, or return a mean in which each has equal weight"
            )


def usable(device: str | torch.device) -> torch.device:
    """Return a device, "cpu" or "cuda", after checking that the machine has it.

    Raises:
        DeviceError: The machine lacks the device.
    """
    checked = torch.device(device)
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError("training.device is 'cuda', but torch finds no CUDA device on this machine; use 'cpu'")
    return checked


def check_splits(splits: Splits, may_be_empty: Collection[str] = ()) -> None:
    """Check that the four parts fit together: not empty, one target an input, equal shapes and dtypes.

    Overlap cannot be detected in the examples themselves, because real data holds equal images under different indices;
    a task checks the indices that it splits by with `disjoint`.

    Args:
        splits: The four parts.
        may_be_empty: Names of parts that nothing reads.

    Raises:
        ValueError: A part is empty, has inputs without targets, or differs in shape or dtype from `train`.
    """
    for name, part in splits._asdict().items():
        model_inputs.check(part.inputs, f"split {name!r}")
        if (number := model_inputs.count(part.inputs)) != len(part.targets):
            raise ValueError(
                f"split {name!r}: {number} inputs but {len(part.targets)} targets, expected one target for"
                " each input; were only the inputs shuffled or cut?"
            )
        if len(part.targets) == 0 and name in may_be_empty:
            continue
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
    return f"{model_inputs.form(inputs)} with targets {targets.dtype} {tuple(targets.shape[1:])}"
