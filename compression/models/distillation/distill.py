"""Knowledge distillation: a student learns the teacher's answers on data whose labels may be unknown.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2: the Kullback-Leibler
divergence between softened distributions, times T^2 so that its gradients keep their size as T changes, plus
cross-entropy where labels are given.

The loss is in `loss`; what else can be learned in `hints` (the teacher's inside), `early_exits` (the student's own
deeper part), `class_balance` (rare classes); who teaches in `teachers`; models between teacher and student in
`teacher_assistants`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedpress.compression.models import masks
from fedpress.compression.models.distillation import stages, teachers
from fedpress.compression.models.distillation.loss import HIDDEN, DistillationLoss
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.step import Materials, Student, Teacher


@dataclass(frozen=True)
class Distill:
    """Step: the student learns the teacher's answers.

    Attributes:
        settings: How.
    """

    settings: Distillation = Distillation()

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the student after its distillation, with the weights zero that its masks lack."""

        def learn(model: nn.Module) -> nn.Module:
            inputs, targets = materials.inputs, materials.targets
            return distill(materials.teacher, model, inputs, self.settings, targets=targets, seed=materials.seed)

        return student.after("distilled", masks.train_within(student.model, student.masks, learn))


def distill(
    teacher: nn.Module | Teacher,
    student: nn.Module,
    inputs: Tensor,
    settings: Distillation = Distillation(),
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
    views = inputs if teacher_inputs is None else teacher_inputs
    for name, part in (("targets", targets), ("teacher_inputs", views)):
        if part is not None and len(part) != len(inputs):
            raise ValueError(f"got {len(part)} {name} for {len(inputs)} inputs, expected one for each")
    with reproducible(seed) as generator:
        source = teachers.of(teacher)
        learner = copy.deepcopy(student).cpu().train()
        if targets is not None and settings.labeled is not None:
            targets = few_labels(targets, settings.labeled, generator)
        loss = DistillationLoss(source, learner, inputs, views, targets, settings)
        inside = source.model if isinstance(source, teachers.Single) else nn.Identity()
        with stages.recording(learner) as of_student, stages.recording(inside) as of_teacher:
            fit(
                [*learner.parameters(), *loss.parameters()],
                lambda: loss.epoch(generator),
                lambda batch: loss(batch, of_student, of_teacher),
                settings,
                steps=settings.epochs * math.ceil(len(inputs) / settings.batch_size),
                after=loss.after_step,
            )
        learned = loss.learned()
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
    visible = torch.full_like(targets, HIDDEN)
    visible[chosen] = targets[chosen]
    return visible


def _rate(step: int, steps: int) -> float:
    """Learning rate at a step as a part of the highest: linear rise, then half a cosine down to zero."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
