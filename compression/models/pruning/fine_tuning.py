"""Fine-tuning between the steps of a pruning schedule, on labels or by distillation."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from fedpress.compression.models import batches
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.distillation import distill, teachers
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.models.outputs import fitted
from fedpress.compression.models.pruning.penalties import Penalty
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.task import IGNORED, Examples, Task


class FineTune(Protocol):
    """Training between the steps.

    Law: the returned model has the structure of the given one, which is untouched.
    """

    def __call__(self, model: nn.Module, *, epochs: int, seed: int, penalty: Penalty | None = None) -> nn.Module:
        """Return the trained model.

        Args:
            model: Starting point; untouched.
            epochs: Passes over the data.
            seed: Seed of all random choices.
            penalty: Term to add to the loss.
        """


def training(task: Task, examples: Examples, learning_rate: float = 1e-3, batch_size: int = 32) -> FineTune:
    """Return fine-tuning on labels with the task's loss: AdamW with a cosine decay of the learning rate to zero.

    Args:
        task: Task that defines the loss.
        examples: Examples with labels or, where these are hidden, a teacher's answers as targets (`answered`).
        learning_rate: Initial learning rate.
        batch_size: Examples in a step.
    """

    def train(model: nn.Module, *, epochs: int, seed: int, penalty: Penalty | None = None) -> nn.Module:
        with reproducible(seed) as generator:
            learner = copy.deepcopy(model).cpu().train()
            optimizer = torch.optim.AdamW(learner.parameters(), learning_rate, weight_decay=0.0)
            count = len(examples.targets)
            steps = epochs * batches.count(count, batch_size, learner)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            with batches.lone_examples(learner):
                for _ in range(epochs):
                    for batch in batches.split(torch.randperm(count, generator=generator), batch_size, learner):
                        inputs, targets = examples.batch(batch)
                        outputs = model_inputs.call(learner, inputs)
                        loss = task.loss(outputs, fitted(targets, outputs, inputs))
                        optimizer.zero_grad()
                        torch.autograd.backward(loss if penalty is None else loss + penalty(learner))
                        optimizer.step()
                        schedule.step()
            optimizer.zero_grad()
        for given, trained in zip(model.modules(), learner.modules(), strict=True):
            trained.training = given.training
        return learner

    return train


def distilling(
    teacher: nn.Module,
    inputs: Inputs,
    settings: Distillation = Distillation(),
    targets: Tensor | None = None,
    class_axis: int = teachers.LAST,
) -> FineTune:
    """Return fine-tuning by distillation, which takes no penalty.

    Args:
        teacher: Teacher.
        inputs: Proxy data (N, ...).
        settings: Distillation, whose epochs are ignored.
        targets: Labels of the proxy data, int64 (N,); None: no labels are visible.
        class_axis: Axis of the models' outputs along which the classes are.
    """

    def train(model: nn.Module, *, epochs: int, seed: int, penalty: Penalty | None = None) -> nn.Module:
        if penalty is not None:
            raise ValueError(
                "distillation takes no penalty: train with `training`, on the teacher's answers as targets"
            )
        chosen = replace(settings, epochs=epochs)
        return distill.distill(teacher, model, inputs, chosen, targets=targets, class_axis=class_axis, seed=seed)

    return train


def answered(teacher: nn.Module, inputs: Inputs, class_axis: int = teachers.LAST) -> Examples:
    """Return inputs with the teacher's predictions as targets, for data whose labels are hidden; padding has none.

    Args:
        teacher: Teacher; asked in evaluation mode, left as it is.
        inputs: Inputs (N, ...).
        class_axis: Axis of its outputs along which the classes are.
    """
    source, targets, on_the_left = teachers.Single(teacher, class_axis), [], False
    for batch in model_inputs.pieces(inputs, teachers.BATCH):
        labels = source.answers(batch).argmax(dim=1)
        places = model_inputs.present(batch)
        if places is not None and places.shape == labels.shape:
            labels = labels.masked_fill(~places, IGNORED)
            on_the_left |= not bool(places[:, 0].all())
        targets.append(labels)
    return Examples(inputs, model_outputs.padded(targets, IGNORED, before=on_the_left))
