"""Teachers: whatever answers a batch of inputs with logits. One model, or an ensemble that is never in memory at once.

T. Lin, L. Kong, S. U. Stich, M. Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning" (FedDF),
NeurIPS 2020, section 3: the mean of the logits of models of any architecture, asked on unlabeled data (`logits`).
B. Lakshminarayanan, A. Pritzel, C. Blundell, "Simple and Scalable Predictive Uncertainty Estimation using Deep
Ensembles", NeurIPS 2017, section 2.4: the mean of their probabilities (`probabilities`). The same with each model's
weight, for each example, by how certain it is: one minus its entropy over that of a uniform answer (`entropy`), or its
largest probability (`confidence`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import get_args

import torch
from torch import Tensor, nn

from fedpress.compression.errors import FedpressError
from fedpress.compression.models.distillation.settings import Combine as Combine
from fedpress.compression.models.step import Teacher as Teacher

BATCH = 512
"""Inputs that a teacher answers at a time."""


class TeacherError(FedpressError, ValueError):
    """A teacher cannot teach what it is asked for."""


class Single:
    """One model as a teacher; a copy, in evaluation mode, on the CPU.

    Attributes:
        model: The copy, whose layers can be looked into.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).cpu().eval().requires_grad_(False)

    def answers(self, inputs: Tensor) -> Tensor:
        """As of `Teacher`."""
        return logits(self.model, inputs)


class Ensemble:
    """Several models as one teacher, asked one after the other: only the sum of their answers is kept.

    >>> models = [nn.Linear(2, 3) for _ in range(2)]
    >>> inputs = torch.ones(4, 2)
    >>> mean = (models[0](inputs) + models[1](inputs)) / 2
    >>> torch.allclose(Ensemble(lambda: models).answers(inputs), mean)
    True

    Args:
        models: Called for each set of inputs; returns the models, or other teachers, which may be made as they are
            asked for. They may differ in architecture, not in the form of their answers.
        combine: How the answers become one.
        temperature: At which probabilities are averaged: that of the distillation makes its loss the mean of the losses
            to each model, up to a constant.

    Raises:
        ValueError: There is no such way to combine.
    """

    def __init__(
        self, models: Callable[[], Iterable[nn.Module | Teacher]], combine: Combine = "logits", temperature: float = 1.0
    ) -> None:
        if combine not in get_args(Combine):
            raise ValueError(f"combine is {combine!r}, expected one of {', '.join(get_args(Combine))}")
        self._models = models
        self._combine = combine
        self._temperature = temperature

    def answers(self, inputs: Tensor) -> Tensor:
        """As of `Teacher`; logarithms of probabilities where these are averaged, which are logits of the same answers.

        Raises:
            TeacherError: There is no model, or two answer in different forms.
        """
        total, weight = None, torch.zeros((), dtype=torch.float64)
        for number, model in enumerate(self._models()):
            answer = (logits(model, inputs) if isinstance(model, nn.Module) else model.answers(inputs)).double()
            if total is not None and answer.shape != total.shape:
                raise TeacherError(
                    f"the models of an ensemble must answer alike: number {number} gives {tuple(answer.shape)}, those"
                    f" before it {tuple(total.shape)}; are they of one task?"
                )
            if self._combine == "logits":
                total = answer if total is None else total + answer
                weight = weight + 1
            else:
                answer = (answer / self._temperature).log_softmax(dim=1)
                certainty = self._certainty(answer)
                answer = answer + certainty.log()
                total = answer if total is None else torch.logaddexp(total, answer)
                weight = weight + certainty
        if total is None:
            raise TeacherError("an ensemble without models cannot teach; was no reply accepted yet?")
        mean = total / weight if self._combine == "logits" else self._temperature * (total - weight.log())
        return mean.float()

    def _certainty(self, logarithms: Tensor) -> Tensor:
        """The weight of each answer, above 0, of shape (N, 1, ...), from log-probabilities (N, classes, ...)."""
        if self._combine == "probabilities":
            return torch.ones_like(logarithms[:, :1])
        if self._combine == "confidence":
            return logarithms.amax(dim=1, keepdim=True).exp()
        entropy = -(logarithms.exp() * logarithms).sum(dim=1, keepdim=True)
        return (1 - entropy / math.log(logarithms.shape[1])).clamp(min=1e-6)


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return a model's answers to inputs (N, ...), `by_class`, in evaluation mode and without gradients.

    The modes are put back.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([by_class(model(batch)) for batch in torch.split(inputs, BATCH)])
    finally:
        for module, training in modes.items():
            module.training = training


def by_class(answers: Tensor) -> Tensor:
    """Return a model's answers, (N, classes) or (N, L, classes), with the classes second, where the losses want them.

    >>> by_class(torch.zeros(5, 64, 49)).shape, by_class(torch.zeros(5, 49)).shape
    (torch.Size([5, 49, 64]), torch.Size([5, 49]))
    """
    return answers.movedim(-1, 1)


def of(teacher: nn.Module | Teacher) -> Teacher:
    """Return a model as a teacher; a teacher as it is."""
    return Single(teacher) if isinstance(teacher, nn.Module) else teacher
