"""Training between the steps of pruning, on labels or by distillation; both have the same form."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from fedpress.compression.models.distillation import distill
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.pruning.penalties import Penalty
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.task import Examples, Task


class FineTune(Protocol):
    """Training between the steps. Law: the model returned has the structure of the one given, which is untouched."""

    def __call__(self, model: nn.Module, *, epochs: int, seed: int, penalty: Penalty | None = None) -> nn.Module:
        """Return the model trained for some passes over the data, with a term added to the loss if there is one."""


def training(task: Task, examples: Examples, learning_rate: float = 1e-3, batch_size: int = 32) -> FineTune:
    """Training on labels with the task's loss: AdamW, its rate falling to zero by a cosine.

    Args:
        task: Whose loss it is.
        examples: With labels or, where they are hidden, with a teacher's answers as targets (`answered`).
        learning_rate: The highest.
        batch_size: Of a step.
    """

    def train(model: nn.Module, *, epochs: int, seed: int, penalty: Penalty | None = None) -> nn.Module:
        with reproducible(seed) as generator:
            learner = copy.deepcopy(model).cpu().train()
            optimizer = torch.optim.AdamW(learner.parameters(), learning_rate, weight_decay=0.0)
            steps = epochs * -(-len(examples.targets) // batch_size)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in range(epochs):
                for batch in torch.split(torch.randperm(len(examples.targets), generator=generator), batch_size):
                    loss = task.loss(learner(examples.inputs[batch]), examples.targets[batch])
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
    teacher: nn.Module, inputs: Tensor, settings: Distillation = Distillation(), targets: Tensor | None = None
) -> FineTune:
    """Distillation from the teacher, with the settings but for the epochs; it takes no penalty."""

    def train(model: nn.Module, *, epochs: int, seed: int, penalty: Penalty | None = None) -> nn.Module:
        if penalty is not None:
            raise ValueError(
                "distillation takes no penalty: train with `training`, on the teacher's answers as targets"
            )
        return distill.distill(teacher, model, inputs, replace(settings, epochs=epochs), targets=targets, seed=seed)

    return train


def answered(teacher: nn.Module, inputs: Tensor) -> Examples:
    """Inputs with the classes that the teacher gives them as targets, for data whose labels are hidden."""
    model = copy.deepcopy(teacher).cpu().eval()
    with torch.no_grad():
        return Examples(inputs, torch.cat([model(batch).argmax(dim=1) for batch in torch.split(inputs, 512)]))
