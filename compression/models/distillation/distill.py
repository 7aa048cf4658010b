"""Knowledge distillation: a student learns the teacher's answers on data whose labels may be unknown.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2: the Kullback-Leibler
divergence between softened distributions, times T^2 so that its gradients keep their size as T changes, plus
cross-entropy where labels are given.
A. Tarvainen, H. Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
semi-supervised deep learning results", NeurIPS 2017, section 2: the student's own past, the exponential mean of its
weights, as one more teacher; each sees the inputs with noise of its own, and the mean is what is kept.

What else can be learned is in `hints` (the teacher's inside), `exits` (the student's own deeper part), `balance` (rare
classes); who teaches in `teachers`; models between teacher and student in `assistant`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from fedpress.compression.models.distillation import class_balance, stages, teachers
from fedpress.compression.models.distillation.early_exits import Exits
from fedpress.compression.models.distillation.hints import Hints, HintWeights
from fedpress.compression.models.distillation.teachers import Teacher, TeacherError
from fedpress.compression.models.reproducible import reproducible

HIDDEN = -100
"""The label of an example whose label the student may not see."""


class Weights(NamedTuple):
    """How much each part of the loss counts; 0: it is not there.

    Attributes:
        teacher: The teacher's answers.
        labels: Labels, for when there are any.
        features: The teacher's activations, through learned projections (`hints`).
        transfer: Where the teacher's activations are large (`hints`).
        attention: The teacher's attention distributions (`hints`).
        past: The answers of the student's own past.
        exits: Classifiers after each of the student's stages, taught by its last one (`exits`).
    """

    teacher: float = 1.0
    labels: float = 0.5
    features: float = 0.0
    transfer: float = 0.0
    attention: float = 0.0
    past: float = 0.0
    exits: float = 0.0


WEIGHTS = Weights()


@dataclass(frozen=True)
class Distillation:
    """Settings of the distillation of one student.

    The defaults are where the optimum is flat (docs/results/students.md); the table there is printed by
    `python -m fedpress.simulations.studies.distillation fashion-mnist`.

    Attributes:
        epochs: Passes over the proxy data.
        learning_rate: The highest of AdamW's; it rises over the first tenth of the steps and falls to zero by a cosine.
        batch_size: Examples in a step.
        temperature: Softens both distributions; 1 leaves them.
        weights: Of the parts of the loss.
        labeled: Of how many proxy examples the student may see the label, the same number of each class; None: of all
            that it is given.
        balance: What makes up for rare classes: "none", "reweight" or "resample" (`balance`).
        beta: Of `balance`, in [0, 1): how much it does.
        noise: Standard deviation of what is added to each input of the student, in the units of the inputs.
        decay: Of the mean of the student's past, in (0, 1); in the first steps it is lower.
    """

    epochs: int = 20
    learning_rate: float = 3e-3
    batch_size: int = 32
    temperature: float = 2.0
    weights: Weights = WEIGHTS
    labeled: int | None = None
    balance: class_balance.Balance = "none"
    beta: float = 0.999
    noise: float = 0.0
    decay: float = 0.99

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}")
        if not (self.learning_rate > 0 and self.temperature > 0):
            raise ValueError(
                f"learning_rate and temperature must be above 0, got {self.learning_rate} and {self.temperature}"
            )
        if min(self.weights) < 0 or max(self.weights) <= 0:
            raise ValueError(f"weights must be at least 0, and one of them above it, got {self.weights}")
        if self.labeled is not None and self.labeled < 1:
            raise ValueError(f"labeled must be at least 1, or None for all labels that there are, got {self.labeled}")
        if self.balance not in get_args(class_balance.Balance):
            raise ValueError(
                f"balance must be one of {', '.join(get_args(class_balance.Balance))}, got {self.balance!r}"
            )
        if not (0 <= self.beta < 1 and 0 < self.decay < 1):
            raise ValueError(f"beta must be in [0, 1) and decay in (0, 1), got {self.beta} and {self.decay}")
        if not self.noise >= 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")


DEFAULTS = Distillation()


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    targets: Tensor | None = None,
    weights: Weights = WEIGHTS,
    importance: Tensor | None = None,
) -> Tensor:
    """weights.teacher * T^2 * KL(teacher || student), both at temperature T, + weights.labels * cross-entropy.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> float(distillation_loss(logits, logits + 3.0, temperature=2.0))
    0.0

    Args:
        student_logits: (N, classes), or (N, classes, L) for sequences.
        teacher_logits: The same.
        temperature: T > 0.
        targets: Labels, int64 (N,) or (N, L), `HIDDEN` for those that must not be seen; None: the teacher's answers
            alone.
        weights: Of the two parts; the others are not looked at.
        importance: How much each example counts, (N,), with a mean of about 1; None: all the same.

    Returns:
        The mean over the batch, a scalar; of the cross-entropy that over the labels that may be seen.
    """
    loss = torch.zeros(())
    if weights.teacher:
        divergence = softened_divergence(student_logits, teacher_logits, temperature)
        loss = weights.teacher * temperature**2 * _mean(divergence, importance)
    if targets is not None and weights.labels:
        each = functional.cross_entropy(student_logits, targets, reduction="none", ignore_index=HIDDEN)
        seen = (targets != HIDDEN).sum().clamp(min=1)
        loss = loss + weights.labels * _mean(each, importance) * targets.numel() / seen
    return loss


def softened_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of answers (N, classes, ...), both at a temperature, for each example: (N, ...)."""
    return functional.kl_div(
        functional.log_softmax(student_logits / temperature, dim=1),
        functional.log_softmax(teacher_logits / temperature, dim=1),
        reduction="none",
        log_target=True,
    ).sum(dim=1)


def distill(
    teacher: nn.Module | Teacher,
    student: nn.Module,
    inputs: Tensor,
    settings: Distillation = DEFAULTS,
    *,
    targets: Tensor | None = None,
    teacher_inputs: Tensor | None = None,
    seed: int,
) -> nn.Module:
    """Return the student after it learned the teacher's answers to `inputs`; both given models are untouched.

    Runs on the CPU and on one thread, so the same arguments give the same weights. Models answer (N, classes), or
    (N, L, classes) for sequences, whose places all count alike.

    Args:
        teacher: Answers in evaluation mode, once for each input.
        student: Where training starts from.
        inputs: Proxy data (N, ...).
        settings: How to train.
        targets: Labels of the proxy data, int64 (N,), if the student may see them.
        teacher_inputs: What the teacher is asked instead, (N, ...): another view of the same examples.
        seed: Of the order of the examples, and of all that is drawn: dropout, noise, projections, few labels.

    Raises:
        TeacherError: The weights ask for the inside of a teacher that is no single model, or of models that have
            nothing in common; or the two answer in different forms.
        ValueError: There are no inputs, or not as many labels or other views as them.
    """
    if len(inputs) == 0:
        raise ValueError("distillation needs proxy data, got 0 inputs: does the task hold out a proxy part?")
    asked = inputs if teacher_inputs is None else teacher_inputs
    for name, part in (("targets", targets), ("teacher_inputs", asked)):
        if part is not None and len(part) != len(inputs):
            raise ValueError(f"got {len(part)} {name} for {len(inputs)} inputs, expected one for each")
    with reproducible(seed) as generator:
        source = teachers.of(teacher)
        learner = copy.deepcopy(student).cpu().train()
        if targets is not None and settings.labeled is not None:
            targets = few_labels(targets, settings.labeled, generator)
        lesson = DistillationLoss(source, learner, inputs, asked, targets, settings)
        inside = source.model if isinstance(source, teachers.Single) else nn.Identity()
        with stages.recording(learner) as own, stages.recording(inside) as theirs:
            fit(
                [*learner.parameters(), *lesson.parameters()],
                lambda: lesson.epoch(generator),
                lambda batch: lesson.loss(batch, own, theirs),
                settings,
                steps=settings.epochs * math.ceil(len(inputs) / settings.batch_size),
                after=lesson.after_step,
            )
        learned = lesson.learned()
    for module, trained in zip(student.modules(), learned.modules(), strict=True):
        trained.training = module.training
    return learned


def fit(
    parameters: Iterable[nn.Parameter],
    epoch: Callable[[], Iterable[Tensor]],
    loss: Callable[[Tensor], Tensor],
    settings: Distillation,
    *,
    steps: int,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Train parameters in place: AdamW, its rate rising and falling over all the steps.

    Args:
        parameters: What is trained; afterwards without gradients.
        epoch: Called for each pass; returns its batches, whatever `loss` takes for one.
        loss: Of a batch, a scalar.
        settings: Epochs and learning rate.
        steps: How many batches there are in all.
        after: Called after each step.
    """
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    for _ in range(settings.epochs):
        for batch in epoch():
            value = loss(batch)
            optimizer.zero_grad()
            torch.autograd.backward(value)
            optimizer.step()
            schedule.step()
            after()
    optimizer.zero_grad()


class DistillationLoss:
    """What one student learns: the losses of a batch, and which examples make one."""

    def __init__(
        self,
        teacher: Teacher,
        learner: nn.Module,
        inputs: Tensor,
        asked: Tensor,
        targets: Tensor | None,
        settings: Distillation,
    ) -> None:
        weights = settings.weights
        self._learner, self._teacher, self._settings = learner, teacher, settings
        self._inputs, self._asked, self._targets = inputs, asked, targets
        self._answers = teacher.answers(asked)
        own = teachers.logits(learner, inputs[:2])
        if own.shape[1:] != self._answers.shape[1:]:
            raise TeacherError(
                f"the teacher answers each example with {tuple(self._answers.shape[1:])} logits, the student with"
                f" {tuple(own.shape[1:])}; are they of one task?"
            )
        if own.ndim > 2 and (weights.exits or settings.balance != "none"):
            raise ValueError(
                f"weights.exits is {weights.exits:g} and balance {settings.balance!r}, but the answers are sequences:"
                ' both are for one label an example; set them to 0 and "none"'
            )
        if targets is None and not any(weights._replace(labels=0.0)):
            raise ValueError(
                f"weights.labels is {weights.labels:g} and all others are 0, but there are no labels to learn: give"
                " targets, or a weight to the teacher"
            )
        if settings.noise and not inputs.is_floating_point():
            raise ValueError(f"noise is {settings.noise:g}, but inputs of {inputs.dtype} take none; set it to 0")
        self._hints: Hints | None = None
        if any(hints := HintWeights(weights.features, weights.transfer, weights.attention)):
            if not isinstance(teacher, teachers.Single):
                raise TeacherError(
                    "weights.features, transfer and attention look into one model, but the teacher is"
                    f" {type(teacher).__name__}; set them to 0"
                )
            self._hints = Hints(learner, teacher.model, inputs[:2], asked[:2], hints)
        self._exits = Exits(learner, inputs[:2], own.shape[1]) if weights.exits else None
        self._past = AveragedModel(learner, avg_fn=self._average, use_buffers=True).eval() if weights.past else None
        self._balance: Tensor | None = None
        if settings.balance != "none":
            classes = self._answers.argmax(dim=1)
            if targets is not None:
                classes = torch.where(targets == HIDDEN, classes, targets)
            self._balance = class_balance.weights(classes, settings.beta)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained besides the student, and thrown away afterwards: projections and classifiers."""
        return [parameter for aid in (self._hints, self._exits) if aid is not None for parameter in aid.parameters()]

    def epoch(self, generator: torch.Generator) -> Iterable[Tensor]:
        """The batches of one pass, as indices."""
        count = len(self._inputs)
        if self._balance is not None and self._settings.balance == "resample":
            order = torch.multinomial(self._balance, count, replacement=True, generator=generator)
        else:
            order = torch.randperm(count, generator=generator)
        return torch.split(order, self._settings.batch_size)

    def loss(self, batch: Tensor, own: stages.Recording, theirs: stages.Recording) -> Tensor:
        """The loss of a batch; `own` and `theirs` record what student and teacher do here."""
        settings, weights = self._settings, self._settings.weights
        answers = self._answers[batch]
        targets = None if self._targets is None else self._targets[batch]
        reweighted = self._balance is not None and settings.balance == "reweight"
        importance = self._balance[batch] if self._balance is not None and reweighted else None

        def supervised(logits: Tensor) -> Tensor:
            return distillation_loss(
                logits,
                answers,
                temperature=settings.temperature,
                targets=targets,
                weights=weights,
                importance=importance,
            )

        logits = teachers.by_class(self._learner(self._noisy(batch)))
        loss = supervised(logits)
        softness = settings.temperature**2
        if self._hints is not None:
            assert isinstance(self._teacher, teachers.Single)
            with torch.no_grad():
                self._teacher.model(self._asked[batch])
            loss = loss + self._hints(own, theirs)
        if self._exits is not None:
            exits = self._exits(own)
            deepest = logits.detach()
            each = [
                supervised(early) + softness * softened_divergence(early, deepest, settings.temperature).mean()
                for early in exits
            ]
            loss = loss + weights.exits * torch.stack(each).mean()
        if self._past is not None:
            with torch.no_grad():
                before = teachers.by_class(self._past(self._noisy(batch)))
            loss = loss + weights.past * softness * softened_divergence(logits, before, settings.temperature).mean()
        return loss

    def after_step(self) -> None:
        """Take the student's new weights into the mean of its past."""
        if self._past is not None:
            self._past.update_parameters(self._learner)

    def learned(self) -> nn.Module:
        """The student: the mean of its past, where that teaches."""
        return self._learner if self._past is None else self._past.module

    def _noisy(self, batch: Tensor) -> Tensor:
        inputs = self._inputs[batch]
        return inputs + self._settings.noise * torch.randn_like(inputs) if self._settings.noise else inputs

    def _average(self, mean: Tensor, new: Tensor, steps: Tensor | int) -> Tensor:
        keep = min(self._settings.decay, 1 - 1 / (int(steps) + 1))  # the paper's code: a plain mean at first
        return mean * keep + new * (1 - keep)


def few_labels(targets: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the labels (N, ...) with all but `count` of them `HIDDEN`; each class keeps its share, give or take one.

    Raises:
        ValueError: There are not so many.
    """
    if count > len(targets):
        raise ValueError(f"labeled is {count}, but there are labels of {len(targets)} examples only")
    order = torch.randperm(len(targets), generator=generator)
    if targets.ndim == 1:
        order = order[torch.argsort(targets[order], stable=True)]
    chosen = order[(torch.arange(count) * len(targets) + len(targets) // 2) // count]
    found = torch.full_like(targets, HIDDEN)
    found[chosen] = targets[chosen]
    return found


def _mean(each: Tensor, importance: Tensor | None) -> Tensor:
    if importance is None:
        return each.mean()
    return (each.flatten(1).mean(dim=1) * importance if each.ndim > 1 else each * importance).mean()


def _rate(step: int, steps: int) -> float:
    """Learning rate at a step as a part of the highest: linear rise, then half a cosine down to zero."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
