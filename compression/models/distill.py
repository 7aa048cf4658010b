"""Knowledge distillation: a student learns the teacher's answers on data whose labels may be unknown.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2: the Kullback-Leibler
divergence between softened distributions, times T^2 so that its gradients keep their size as T changes, plus
cross-entropy where labels are given.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpress.compression.models.determinism import reproducible


class Weights(NamedTuple):
    """How much each part of the loss counts; `labels` is for when there are any."""

    teacher: float = 1.0
    labels: float = 0.5


WEIGHTS = Weights()


@dataclass(frozen=True)
class Distillation:
    """Settings of the distillation of one student.

    The defaults are where the optimum is flat (docs/students.md); the table there is printed by
    `python -m fedpress.simulations.distillation_study fashion-mnist`.

    Attributes:
        epochs: Passes over the proxy data.
        learning_rate: The highest of AdamW's; it rises over the first tenth of the steps and falls to zero by a cosine.
        batch_size: Examples in a step.
        temperature: Softens both distributions; 1 leaves them.
        weights: Of the parts of the loss.
    """

    epochs: int = 20
    learning_rate: float = 3e-3
    batch_size: int = 32
    temperature: float = 2.0
    weights: Weights = WEIGHTS

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}")
        if not (self.learning_rate > 0 and self.temperature > 0):
            raise ValueError(
                f"learning_rate and temperature must be above 0, got {self.learning_rate} and {self.temperature}"
            )


DEFAULTS = Distillation()


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    targets: Tensor | None = None,
    weights: Weights = WEIGHTS,
) -> Tensor:
    """weights.teacher * T^2 * KL(teacher || student), both at temperature T, + weights.labels * cross-entropy.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> float(distillation_loss(logits, logits + 3.0, temperature=2.0))
    0.0

    Args:
        student_logits: (N, classes).
        teacher_logits: (N, classes).
        temperature: T > 0.
        targets: Labels, int64 (N,); None: the teacher's answers alone.
        weights: Of the two parts.

    Returns:
        The mean over the batch, a scalar.
    """
    divergence = functional.kl_div(
        functional.log_softmax(student_logits / temperature, dim=1),
        functional.log_softmax(teacher_logits / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    loss = weights.teacher * temperature**2 * divergence
    if targets is not None:
        loss = loss + weights.labels * functional.cross_entropy(student_logits, targets)
    return loss


def distill(
    teacher: nn.Module,
    student: nn.Module,
    inputs: Tensor,
    settings: Distillation = DEFAULTS,
    *,
    targets: Tensor | None = None,
    seed: int,
) -> nn.Module:
    """Return the student after it learnt the teacher's answers to `inputs`; both given models are untouched.

    Runs on the CPU and on one thread, so the same arguments give the same weights.

    Args:
        teacher: Answers in evaluation mode, once for each input.
        student: Where training starts from.
        inputs: Proxy data (N, ...).
        settings: How to train.
        targets: Labels of the proxy data, int64 (N,), if the student may see them.
        seed: Of the order of the examples, and of layers that draw, such as dropout.

    Raises:
        ValueError: There are no inputs.
    """
    if len(inputs) == 0:
        raise ValueError("distillation needs proxy data, got 0 inputs: does the task hold out a proxy part?")
    with reproducible(seed) as generator:
        teacher = copy.deepcopy(teacher).cpu().eval()
        learner = copy.deepcopy(student).cpu().train()
        with torch.no_grad():
            answers = torch.cat([teacher(batch) for batch in torch.split(inputs, 512)])
        steps = settings.epochs * math.ceil(len(inputs) / settings.batch_size)
        optimizer = torch.optim.AdamW(learner.parameters(), settings.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        for _ in range(settings.epochs):
            for batch in torch.split(torch.randperm(len(inputs), generator=generator), settings.batch_size):
                loss = distillation_loss(
                    learner(inputs[batch]),
                    answers[batch],
                    temperature=settings.temperature,
                    targets=None if targets is None else targets[batch],
                    weights=settings.weights,
                )
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
        optimizer.zero_grad()
    for module, trained in zip(student.modules(), learner.modules(), strict=True):
        trained.training = module.training
    return learner


def _rate(step: int, steps: int) -> float:
    """Learning rate at a step as a part of the highest: linear rise, then half a cosine down to zero."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
