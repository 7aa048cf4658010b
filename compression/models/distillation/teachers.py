"""Teachers: one model, or an ensemble of which only one model at a time is in memory.

T. Lin, L. Kong, S. U. Stich, M. Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning" (FedDF),
NeurIPS 2020, section 3: the mean of the logits of models of any architecture on unlabeled data (`logits`).
B. Lakshminarayanan, A. Pritzel, C. Blundell, "Simple and Scalable Predictive Uncertainty Estimation using Deep
Ensembles", NeurIPS 2017, section 2.4: the mean of their probabilities (`probabilities`). Both variants of the latter
weight each model by its certainty about each example: one minus its entropy over that of the uniform distribution
(`entropy`), or its largest probability (`confidence`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from logging import getLogger
from typing import get_args

import torch
from torch import Tensor, nn

from fedpress.compression.errors import FedpressError
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.distillation.settings import Combine
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.models.outputs import Outputs
from fedpress.compression.models.reproducible import evaluating
from fedpress.compression.models.step import Teacher

LAST = -1
"""Axis of the classes where nothing else is said: (N, L, classes)."""
BATCH = 512
"""Inputs in a forward pass."""


class TeacherError(FedpressError, ValueError):
    """Teacher, student and settings do not fit together."""


class Single:
    """One model as a teacher: a copy, in evaluation mode, on the CPU.

    Args:
        model: The model; untouched.
        class_axis: Axis of its outputs along which the classes are.

    Attributes:
        model: The copy, whose activations can be recorded.
    """

    def __init__(self, model: nn.Module, class_axis: int = LAST) -> None:
        self._class_axis = class_axis
        self.model = copy.deepcopy(model).cpu().eval().requires_grad_(False)

    def answers(self, inputs: Inputs) -> Tensor:
        """Return the logits of inputs (N, ...), with the classes second, as `Teacher` defines."""
        return logits(self.model, inputs, self._class_axis)


class Ensemble:
    """Several models as one teacher, run one after the other: only the sum of their answers is kept.

    Answers that are no probabilities, as they hold NaN or infinity, are left out, and the log names the model: they
    would make the mean of all useless.

    >>> models = [nn.Linear(2, 3) for _ in range(2)]
    >>> inputs = torch.ones(4, 2)
    >>> mean = (models[0](inputs) + models[1](inputs)) / 2
    >>> torch.allclose(Ensemble(lambda: models).answers(inputs), mean)
    True

    Args:
        models: Called for each batch of inputs; returns models or other teachers, which may be created lazily. Their
            architectures may differ, the shapes of their outputs may not.
        combine: Combination of the answers.
        temperature: Temperature at which probabilities are averaged; with that of the distillation, its loss is the
            mean of the losses to each model, up to a constant.
        name_of: Returns the name of a model for the log, by its number.
        class_axis: Axis of the models' outputs along which the classes are.

    Raises:
        ValueError: `combine` is unknown.
    """

    def __init__(
        self,
        models: Callable[[], Iterable[nn.Module | Teacher]],
        combine: Combine = "logits",
        temperature: float = 1.0,
        name_of: Callable[[int], str] = "model {}".format,
        class_axis: int = LAST,
    ) -> None:
        if combine not in get_args(Combine):
            raise ValueError(f"combine is {combine!r}, expected one of {', '.join(get_args(Combine))}")
        self._models = models
        self._combine = combine
        self._temperature = temperature
        self._name_of = name_of
        self._named: set[int] = set()  # models that the log has named
        self._class_axis = class_axis

    def answers(self, inputs: Inputs) -> Tensor:
        """Return the combined logits of inputs (N, ...), with the classes second, as `Teacher` defines.

        Where probabilities are averaged, their logarithms are returned, which are logits of the same distribution.

        Raises:
            TeacherError: There is no model, none gives finite answers to some input, or the outputs of two differ in
                shape.
        """
        total, weight = None, torch.zeros((), dtype=torch.float64)
        for number, model in enumerate(self._models()):
            if isinstance(model, nn.Module):
                answer = logits(model, inputs, self._class_axis).double()
            else:
                answer = model.answers(inputs).double()
            if total is not None and answer.shape != total.shape:
                raise TeacherError(
                    f"the outputs of an ensemble's models must have one shape: number {number} gives"
                    f" {tuple(answer.shape)}, those before it {tuple(total.shape)}; are they of one task?"
                )
            usable = torch.isfinite(answer.logsumexp(dim=1, keepdim=True))  # minus infinity is a class that cannot be
            if not bool(usable.all()):
                self._name(number)
            if self._combine == "logits":
                answer, certainty = torch.where(usable, answer, 0.0), usable.double()
                total = answer if total is None else total + answer
            else:
                answer = (answer / self._temperature).log_softmax(dim=1)
                certainty = torch.where(usable, self._certainty(answer), 0.0)
                answer = torch.where(usable, answer + certainty.log(), -math.inf)
                total = answer if total is None else torch.logaddexp(total, answer)
            weight = weight + certainty
        if total is None:
            raise TeacherError("an ensemble without models cannot teach; was no reply accepted yet?")
        if not bool((weight > 0).all()):
            raise TeacherError("no model of an ensemble gives finite answers to some input; have they diverged?")
        mean = total / weight if self._combine == "logits" else self._temperature * (total - weight.log())
        return mean.float()

    def _name(self, number: int) -> None:
        """Name a model whose answers are left out in the log, once."""
        if number not in self._named:
            self._named.add(number)
            getLogger("flwr").warning(
                "%s of an ensemble gives answers that are not finite, which are left out", self._name_of(number)
            )

    def _certainty(self, logarithms: Tensor) -> Tensor:
        """Return the weight of each answer, above 0, (N, 1, ...), from log-probabilities (N, classes, ...)."""
        if self._combine == "probabilities":
            return torch.ones_like(logarithms[:, :1])
        if self._combine == "confidence":
            return logarithms.amax(dim=1, keepdim=True).exp()
        # Zero times minus infinity is zero here.
        entropy = -(logarithms.exp() * logarithms).nan_to_num(nan=0.0).sum(dim=1, keepdim=True)
        return (1 - entropy / math.log(logarithms.shape[1])).clamp(min=1e-6)


def logits(model: nn.Module, inputs: Inputs, class_axis: int = LAST) -> Tensor:
    """Return a model's logits with the classes second (`by_class`), without gradients; sequences in one length.

    Args:
        model: The model; run in evaluation mode, left as it is.
        inputs: Inputs (N, ...).
        class_axis: Axis of its outputs along which the classes are.
    """
    with evaluating(model):
        parts = (by_class(model_inputs.call(model, batch), class_axis) for batch in model_inputs.pieces(inputs, BATCH))
        return model_outputs.padded(list(parts))


def by_class(outputs: Outputs, class_axis: int = LAST) -> Tensor:
    """Return outputs with the classes second, as torch's losses expect them.

    >>> by_class(torch.zeros(5, 64, 49)).shape, by_class(torch.zeros(5, 49)).shape
    (torch.Size([5, 49, 64]), torch.Size([5, 49]))

    Args:
        outputs: Outputs (N, classes), (N, L, classes) or (N, classes, L), or a mapping with such an entry `logits`.
        class_axis: Axis along which the classes are.

    Raises:
        TeacherError: The outputs are no logits.
    """
    answers = model_outputs.answers(outputs)
    if not isinstance(answers, Tensor):
        raise TeacherError(
            f"the model returns a {type(outputs).__name__}: distillation takes the logits of one tensor, also in"
            " training mode"
        )
    return answers.movedim(class_axis, 1)


def of(teacher: nn.Module | Teacher, class_axis: int = LAST) -> Teacher:
    """Return a model as a teacher, and a teacher as it is.

    Args:
        teacher: The model or teacher.
        class_axis: Axis of the model's outputs along which the classes are.
    """
    return Single(teacher, class_axis) if isinstance(teacher, nn.Module) else teacher
