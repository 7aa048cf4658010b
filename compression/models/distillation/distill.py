"""Training loop of knowledge distillation: a student learns the teacher's answers on data with or without labels.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2: the Kullback-Leibler
divergence between softened distributions, times T^2 so that its gradients keep their size as T changes, plus
cross-entropy where labels are visible. `loss` computes it and everything that `LossWeights` adds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedpress.compression.models import batches, masks
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.distillation import stages, teachers
from fedpress.compression.models.distillation.loss import HIDDEN, DistillationLoss
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.step import Materials, Student, Teacher
from fedpress.compression.models.task import has_target


@dataclass(frozen=True)
class Distill:
    """Step: distill the teacher into the student.

    Attributes:
        settings: Loss and training.
    """

    settings: Distillation = Distillation()

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the student after its distillation; its weights outside its masks stay zero.

        Args:
            student: Student to train.
            materials: Teacher, data and seed.
        """

        def learn(model: nn.Module) -> nn.Module:
            return distill(
                materials.teacher,
                model,
                materials.inputs,
                self.settings,
                targets=materials.targets,
                class_axis=materials.class_axis,
                seed=materials.seed,
            )

        return student.after("distilled", masks.train_within(student.model, student.masks, learn))


def distill(
    teacher: nn.Module | Teacher,
    student: nn.Module,
    inputs: Inputs,
    settings: Distillation = Distillation(),
    *,
    targets: Tensor | None = None,
    teacher_inputs: Inputs | None = None,
    class_axis: int = teachers.LAST,
    seed: int,
) -> nn.Module:
    """Return the student trained on the teacher's answers to `inputs`; both given models are untouched.

    Runs on one thread of the CPU, so equal arguments give equal weights. Models return logits (N, classes), or
    (N, L, classes) for sequences, whose places have equal weight; with `class_axis` 1, (N, classes, L).

    Args:
        teacher: Teacher, which answers in evaluation mode, once for each input.
        student: Starting point of the training.
        inputs: Proxy data (N, ...).
        settings: Loss and training.
        targets: Labels of the proxy data, int64 (N,) or (N, L); None: the student sees none.
        class_axis: Axis of the models' outputs along which the classes are.
        teacher_inputs: Inputs of the teacher where they differ, (N, ...): another view of the same examples.
        seed: Seed of the order of the examples and of all random choices: dropout, noise, projections, few labels.

    Raises:
        TeacherError: The settings need activations of a teacher that is no single model, or of models without matching
            stages; or the outputs of the two differ in shape.
        ValueError: There are no inputs, or the number of labels or of other views differs.
    """
    if (count := model_inputs.count(inputs)) == 0:
        raise ValueError("distillation needs proxy data, got 0 inputs: does the task hold out a proxy part?")
    views = inputs if teacher_inputs is None else teacher_inputs
    given = {"teacher_inputs": model_inputs.count(views)} | ({} if targets is None else {"targets": len(targets)})
    for name, number in given.items():
        if number != count:
            raise ValueError(f"got {number} {name} for {count} inputs, expected one for each")
    with reproducible(seed) as generator:
        source = teachers.of(teacher, class_axis)
        learner = copy.deepcopy(student).cpu().train()
        if targets is not None and settings.labeled is not None:
            targets = few_labels(targets, settings.labeled, generator)
        loss = DistillationLoss(source, learner, inputs, views, targets, settings, class_axis)
        inside = source.model if isinstance(source, teachers.Single) else nn.Identity()
        with (
            batches.lone_examples(learner),
            stages.recording(learner, bool(settings.weights.attention)) as of_student,
            stages.recording(inside, bool(settings.weights.attention)) as of_teacher,
        ):
            fit(
                [*learner.parameters(), *loss.parameters()],
                lambda: loss.epoch(generator),
                lambda batch: loss(batch, of_student, of_teacher),
                settings,
                steps=settings.epochs * batches.count(count, settings.batch_size, learner),
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
    """Train parameters in place by AdamW, its learning rate with a linear warm-up and a cosine decay over all steps.

    Args:
        parameters: Parameters to train; their gradients are cleared at the end.
        epoch: Called for each pass; returns its batches, of any type that `loss` takes.
        loss: Maps a batch to its loss, a scalar.
        settings: Epochs and learning rate.
        steps: Number of batches in all epochs.
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
    """Return the labels with all but `count` of them `HIDDEN`; each class keeps its share, plus or minus one.

    Args:
        targets: Labels, int64 (N,) or (N, L).
        count: Number of examples whose labels stay visible.
        generator: Generator of the choice.

    Raises:
        ValueError: There are fewer than `count` examples.
    """
    labeled = has_target(targets).reshape(len(targets), -1).any(dim=1)
    if count > labeled.sum():
        raise ValueError(f"labeled is {count}, but there are labels of {labeled.sum()} examples only: lower it")
    order = torch.randperm(len(targets), generator=generator)
    order = order[labeled[order]]
    if targets.ndim == 1:
        order = order[torch.argsort(targets[order], stable=True)]
    chosen = order[(torch.arange(count) * len(order) + len(order) // 2) // count]
    visible = torch.full_like(targets, HIDDEN)
    visible[chosen] = targets[chosen]
    return visible


def _rate(step: int, steps: int) -> float:
    """Return the learning rate at a step as a fraction of the highest: linear warm-up, then cosine decay to zero."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
