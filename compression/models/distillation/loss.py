"""The loss of a distillation: the teacher's answers, labels, hints, early exits and a mean teacher, weighted.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
A. Tarvainen, H. Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
semi-supervised deep learning results", NeurIPS 2017, section 2: the exponential moving average of the student's weights
is an additional teacher; both see the inputs with independent noise, and the average is the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from fedpress.compression.models import batches
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.distillation import class_balance, stages, teachers
from fedpress.compression.models.distillation.early_exits import Exits
from fedpress.compression.models.distillation.hints import Hints
from fedpress.compression.models.distillation.settings import Distillation, Divergence, LossWeights
from fedpress.compression.models.distillation.teachers import TeacherError
from fedpress.compression.models.inputs import Batch, Inputs
from fedpress.compression.models.step import Teacher

HIDDEN = -100
"""Label of an example whose true label the student may not see."""


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    targets: Tensor | None = None,
    weights: LossWeights = LossWeights(),
    importance: Tensor | None = None,
    places: Tensor | None = None,
    divergence: Divergence = "kl",
) -> Tensor:
    """Return weights.teacher * T^2 * KL(teacher || student) at temperature T + weights.labels * cross-entropy.

    For answers that are no logits, another divergence takes the place of the first part.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> float(distillation_loss(logits, logits + 3.0, temperature=2.0))
    0.0

    Args:
        student_logits: Logits (N, classes), or (N, classes, L) for sequences.
        teacher_logits: Logits of the same shape.
        temperature: T > 0.
        targets: Labels, int64 (N,) or (N, L), `HIDDEN` where they may not be seen; None: no cross-entropy.
        weights: Weights of the parts, of which teacher and labels are used.
        importance: Weight of each example, (N,), with a mean of about 1; None: equal weights.
        places: Places of sequences that are no padding, bool (N, L): the teacher's part is the mean of them; None: all.
        divergence: Distance from the teacher's answers, as `Distillation` defines it.

    Returns:
        The mean over the batch, a scalar; the cross-entropy is the mean over visible labels.
    """
    loss = torch.zeros(())
    if weights.teacher:
        if divergence == "kl":
            distances = temperature**2 * softened_divergence(student_logits, teacher_logits, temperature)
        elif divergence == "mse":
            distances = (student_logits - teacher_logits).square().mean(dim=1)
        else:
            distances = 1 - functional.cosine_similarity(student_logits, teacher_logits, dim=1)
        loss = weights.teacher * _mean(distances, importance, places)
    if targets is not None and weights.labels:
        entropies = functional.cross_entropy(student_logits, targets, reduction="none", ignore_index=HIDDEN)
        visible = (targets != HIDDEN).sum().clamp(min=1)
        loss = loss + weights.labels * _mean(entropies, importance) * targets.numel() / visible
    return loss


def softened_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher || student) at a temperature for each example, (N, ...).

    Args:
        student_logits: Logits (N, classes, ...).
        teacher_logits: Logits of the same shape.
        temperature: T > 0.
    """
    return functional.kl_div(
        functional.log_softmax(student_logits / temperature, dim=1),
        functional.log_softmax(teacher_logits / temperature, dim=1),
        reduction="none",
        log_target=True,
    ).sum(dim=1)


class DistillationLoss:
    """Loss of a batch in a student's training, and the sampling of batches.

    Args:
        teacher: Teacher, which answers all views once; stored sequences, which are padded as each batch is, in each.
        learner: Student in training.
        inputs: Proxy data (N, ...).
        views: Inputs of the teacher, (N, ...), in the same order.
        targets: Labels, int64 (N,) or (N, L); None: no labels are visible.
        settings: Settings of the distillation.
        class_axis: Axis of the student's outputs along which the classes are.

    Raises:
        TeacherError: As for `distill.distill`.
        ValueError: The settings do not fit the data.
    """

    def __init__(
        self,
        teacher: Teacher,
        learner: nn.Module,
        inputs: Inputs,
        views: Inputs,
        targets: Tensor | None,
        settings: Distillation,
        class_axis: int = teachers.LAST,
    ) -> None:
        self._class_axis = class_axis
        weights = settings.weights
        self._learner, self._teacher, self._settings = learner, teacher, settings
        self._inputs, self._views, self._targets = inputs, views, targets
        few, few_views = model_inputs.first(inputs, 2), model_inputs.first(views, 2)
        answers = teachers.logits(learner, few, class_axis)
        lengths_differ = not isinstance(views, Tensor | Mapping) and answers.ndim > 2
        self._answers = None if lengths_differ else teacher.answers(views)  # once for each input
        expected = teacher.answers(few_views) if self._answers is None else self._answers
        if answers.shape[1:] != expected.shape[1:]:
            raise TeacherError(
                f"the teacher answers each example with {tuple(expected.shape[1:])} logits, the student with"
                f" {tuple(answers.shape[1:])}; are they of one task?"
            )
        if answers.ndim > 2 and (weights.early_exits or settings.balance != "none"):
            raise ValueError(
                f"weights.early_exits is {weights.early_exits:g} and balance {settings.balance!r}, but the answers are"
                ' sequences: both are for one label an example; set them to 0 and "none"'
            )
        if targets is None and not weights.learns_without_labels:
            raise ValueError(
                f"weights.labels is {weights.labels:g} and all others are 0, but there are no labels to learn: give"
                " targets, or a weight to the teacher"
            )
        if settings.noise and not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
            kinds = model_inputs.form(inputs)
            raise ValueError(f"noise is {settings.noise:g}, but inputs {kinds} take none; set it to 0")
        self._hints: Hints | None = None
        if weights.features or weights.attention_transfer or weights.attention:
            if not isinstance(teacher, teachers.Single):
                raise TeacherError(
                    "weights.features, attention_transfer and attention need the activations of one model, but the"
                    f" teacher is {type(teacher).__name__}; set them to 0"
                )
            self._hints = Hints(learner, teacher.model, few, few_views, weights)
        self._exits = Exits(learner, few, answers.shape[1]) if weights.early_exits else None
        self._mean_teacher = (
            AveragedModel(learner, avg_fn=self._average, use_buffers=True).eval() if weights.mean_teacher else None
        )
        self._balance: Tensor | None = None
        if settings.balance != "none":
            classes = expected.argmax(dim=1)
            if targets is not None:
                classes = torch.where(targets == HIDDEN, classes, targets)
            self._balance = class_balance.weights(classes, settings.beta)

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters trained besides the student's and discarded afterwards: projections and exits."""
        modules = [module for module in (self._hints, self._exits) if module is not None]
        return [parameter for module in modules for parameter in module.parameters()]

    def epoch(self, generator: torch.Generator) -> Iterable[Tensor]:
        """Return the batches of one pass, each as indices, int64 (B,)."""
        count = model_inputs.count(self._inputs)
        if self._balance is not None and self._settings.balance == "resample":
            order = torch.multinomial(self._balance, count, replacement=True, generator=generator)
        else:
            order = torch.randperm(count, generator=generator)
        return batches.split(order, self._settings.batch_size, self._learner)

    def __call__(self, batch: Tensor, student: stages.Recording, teacher: stages.Recording) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            batch: Indices of its examples, int64 (B,).
            student: Recording of the student's passes.
            teacher: Recording of the teacher's passes.
        """
        settings, weights = self._settings, self._settings.weights
        inputs = self._noisy(model_inputs.take(self._inputs, batch))
        outputs = model_inputs.call(self._learner, inputs)
        logits = teachers.by_class(outputs, self._class_axis)
        if self._answers is None:
            with torch.no_grad():
                answers = self._teacher.answers(model_inputs.take(self._views, batch))
        else:
            answers = self._answers[batch]
        targets = None if self._targets is None else model_outputs.fitted(self._targets[batch], outputs, inputs)
        places = model_inputs.present(inputs) if logits.ndim == 3 else None
        if places is not None and places.shape[1] != logits.shape[2]:
            places = None
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
                places=places,
                divergence=settings.divergence,
            )

        loss = supervised(logits)
        softness = settings.temperature**2
        if self._hints is not None:
            assert isinstance(self._teacher, teachers.Single)
            with torch.no_grad():
                model_inputs.call(self._teacher.model, model_inputs.take(self._views, batch))
            loss = loss + self._hints(student, teacher, model_inputs.present(inputs))
        if self._exits is not None:
            exits = self._exits(student)
            deepest = logits.detach()
            exit_losses = [
                supervised(early) + softness * softened_divergence(early, deepest, settings.temperature).mean()
                for early in exits
            ]
            loss = loss + weights.early_exits * torch.stack(exit_losses).mean()
        if self._mean_teacher is not None:
            with torch.no_grad():
                noisy = self._noisy(model_inputs.take(self._inputs, batch))
                mean_logits = teachers.by_class(model_inputs.call(self._mean_teacher, noisy), self._class_axis)
            divergence = _mean(softened_divergence(logits, mean_logits, settings.temperature), None, places)
            loss = loss + weights.mean_teacher * softness * divergence
        return loss

    def after_step(self) -> None:
        """Update the mean teacher with the student's new weights."""
        if self._mean_teacher is not None:
            self._mean_teacher.update_parameters(self._learner)

    def learned(self) -> nn.Module:
        """Return the trained student: the mean teacher, if there is one."""
        return self._learner if self._mean_teacher is None else self._mean_teacher.module

    def _noisy(self, inputs: Batch) -> Batch:
        return inputs + self._settings.noise * torch.randn_like(inputs) if self._settings.noise else inputs

    def _average(self, mean: Tensor, new: Tensor, steps: Tensor | int) -> Tensor:
        decay = min(self._settings.decay, 1 - 1 / (int(steps) + 1))  # as in the authors' code: a plain mean at first
        return mean * decay + new * (1 - decay)


def _mean(losses: Tensor, importance: Tensor | None, places: Tensor | None = None) -> Tensor:
    """Return the mean of losses (N, ...), weighted by example; of sequences (N, L) over the places that are there."""
    if places is not None:
        losses = losses * places * (places.numel() / places.sum().clamp(min=1))
    if importance is None:
        return losses.mean()
    return (losses.flatten(1).mean(dim=1) * importance if losses.ndim > 1 else losses * importance).mean()
