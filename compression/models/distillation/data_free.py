"""Data-free distillation: inputs synthesized from the teacher alone, for a task that holds out no proxy data.

`synthesize` returns inputs that any distillation can use in place of proxy data. Either the inputs themselves or a
generator of them is optimized for a weighted sum of terms from three papers:

[1] H. Yin, P. Molchanov, J. M. Alvarez et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion",
    CVPR 2020, section 3.2: batch norm statistics close to those of training (equation 4), low total variation
    (equation 3), and a given class for each input. It needs batch norms.
[2] H. Chen, Y. Wang, C. Xu et al., "Data-Free Learning of Student Networks" (DAFL), ICCV 2019, section 3.2: a generator
    of images that the teacher classifies with certainty, that excite its features, and that are balanced over classes
    (equations 3 to 6).
[3] G. Fang, J. Song, C. Shen et al., "Data-Free Adversarial Distillation" (DFAD), arXiv:1912.11006, 2019, section 3: a
    generator that maximizes the L1 distance between the logits of student and teacher.

Both generators return inputs from the whole second half of their training, so that the student learns more than the
final generator's outputs. Inputs are kept in range by a sigmoid, where [1] clips.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fedpress.compression.errors import FedpressError
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.distillation import teachers
from fedpress.compression.models.distillation.settings import DataFree
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.models.reproducible import reproducible

LATENT: Final = 64
"""Size of a generator's latent vector."""
STUDENT_STEPS: Final = 5
"""Steps of the student for each step of the generator, as in [3]."""
STUDENT_RATE: Final = 1e-3
"""Learning rate of that student."""


class DataFreeError(FedpressError, ValueError):
    """No inputs can be synthesized from this model with these settings."""


def synthesize(
    teacher: nn.Module,
    shape: tuple[int, ...],
    settings: DataFree,
    *,
    student: nn.Module | None = None,
    seed: int,
) -> Tensor:
    """Return inputs synthesized from the teacher, float32 (settings.examples, *shape); equal arguments, equal inputs.

    Args:
        teacher: Model whose outputs are logits (N, classes); left as it is.
        shape: Shape of one input.
        settings: Terms of the objective, and their optimization.
        student: Starting point of the distillation, for `disagreement`; left as it is, because a copy is trained.
        seed: Seed of all random choices.

    Raises:
        DataFreeError: `statistics` without a batch norm that keeps them, `disagreement` without a student, or a teacher
            that takes no float32 or whose outputs are not (N, classes).
    """
    classes = check(teacher, shape, settings)
    if settings.disagreement and student is None:
        raise DataFreeError("disagreement is with a student, got none: give the student, or set its weight to 0")
    with reproducible(seed):
        objective = _Objective(copy.deepcopy(teacher).cpu().eval().requires_grad_(False), settings)
        if settings.optimize == "inputs":
            return _optimized(objective, shape, classes, student)
        return _generated(objective, shape, student)


def shape_of(inputs: Inputs) -> tuple[int, ...]:
    """Return the shape of one input, such as is to be synthesized.

    Args:
        inputs: Inputs of the task, (N, ...).

    Raises:
        DataFreeError: They are not one tensor in memory.
    """
    if not isinstance(inputs, Tensor):
        raise DataFreeError(
            f"inputs are made for images and vectors in one tensor, the task's are {model_inputs.form(inputs)}: let"
            " students learn on proxy data"
        )
    return tuple(inputs.shape[1:])


def check(teacher: nn.Module, shape: tuple[int, ...], settings: DataFree) -> int:
    """Return the number of classes, after checking that inputs can be synthesized from this model.

    Args:
        teacher: Model whose outputs are logits (N, classes); left as it is.
        shape: Shape of one input.
        settings: Terms of the objective.

    Raises:
        DataFreeError: As for `synthesize`.
    """
    if settings.statistics and not _norms(teacher):
        raise DataFreeError(
            "the model has no batch norm with running statistics to match: choose a generator (dafl or dfad), or a"
            " model with batch norm"
        )
    try:
        logits = teachers.logits(teacher, torch.full((2, *shape), settings.low))
    except (RuntimeError, TypeError) as error:
        raise DataFreeError(
            f"the model takes no numbers of shape {shape}: {error}; inputs are made for images and vectors"
        ) from error
    if logits.ndim != 2:
        raise DataFreeError(f"the teacher answers {tuple(logits.shape[1:])} an input, expected one logit a class")
    return logits.shape[1]


class _Objective:
    """Loss of a batch of synthesized inputs; hooks on the teacher record its statistics and features."""

    def __init__(self, teacher: nn.Module, settings: DataFree) -> None:
        self.teacher = teacher
        self.settings = settings
        self._distances: list[Tensor] = []
        self._features = torch.zeros(())
        for norm in _norms(teacher):
            norm.register_forward_pre_hook(self._record_distance)
        linear = [module for module in teacher.modules() if isinstance(module, nn.Linear)]
        if linear:
            linear[-1].register_forward_pre_hook(self._record_features)

    def _record_distance(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].transpose(0, 1).flatten(1)  # (channels, values)
        mean, variance = rows.mean(dim=1), rows.var(dim=1, unbiased=False)
        running_mean, running_variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        self._distances.append((mean - running_mean).norm() + (variance - running_variance).norm())

    def _record_features(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0]

    def loss(self, inputs: Tensor, targets: Tensor | None, student: nn.Module | None) -> Tensor:
        """Return the weighted sum of the terms, a scalar.

        Args:
            inputs: Synthesized inputs (N, ...).
            targets: Desired class of each input, int64 (N,); None: the class with the teacher's largest logit.
            student: Student for `disagreement`; None: the term is left out.
        """
        weights = self.settings
        self._distances.clear()
        logits = self.teacher(inputs)
        loss: Tensor = logits.new_zeros(())
        if weights.certainty:
            classes = logits.argmax(dim=1) if targets is None else targets
            loss = loss + weights.certainty * functional.cross_entropy(logits, classes)
        if weights.statistics:
            loss = loss + weights.statistics * torch.stack(self._distances).sum()
        if weights.variation and inputs.ndim == 4:
            variation = inputs.diff(dim=-1).abs().mean() + inputs.diff(dim=-2).abs().mean()
            loss = loss + weights.variation * variation / (weights.high - weights.low)
        if weights.balance:
            mean = logits.softmax(dim=1).mean(dim=0)
            loss = loss + weights.balance * (mean * (mean + 1e-12).log()).sum()
        if weights.activation:
            loss = loss - weights.activation * self._features.abs().mean()
        if weights.disagreement and student is not None:
            loss = loss - weights.disagreement * functional.l1_loss(student(inputs), logits)
        return loss


def _optimized(objective: _Objective, shape: tuple[int, ...], classes: int, student: nn.Module | None) -> Tensor:
    """Return batches of inputs, each optimized by itself from noise; classes in equal numbers."""
    settings = objective.settings
    opponent = None
    if settings.disagreement and student is not None:
        opponent = copy.deepcopy(student).cpu().eval().requires_grad_(False)
    batches = []
    for _ in range(math.ceil(settings.examples / settings.batch_size)):
        raw = torch.randn(settings.batch_size, *shape).requires_grad_()
        targets = torch.randperm(settings.batch_size) % classes
        optimizer = torch.optim.Adam([raw], settings.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        for _ in range(settings.steps):
            optimizer.zero_grad()
            torch.autograd.backward(objective.loss(_ranged(raw, settings), targets, opponent))
            optimizer.step()
            schedule.step()
        batches.append(_ranged(raw.detach(), settings))
    return torch.cat(batches)[: settings.examples]


def _generated(objective: _Objective, shape: tuple[int, ...], student: nn.Module | None) -> Tensor:
    """Return inputs of a generator from every step of the second half of its training; a student may learn along."""
    settings = objective.settings
    generator = _generator(shape)
    optimizer = torch.optim.Adam(generator.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    learner = copy.deepcopy(student).cpu().train() if settings.disagreement and student is not None else None
    learner_optimizer = torch.optim.Adam(learner.parameters(), STUDENT_RATE) if learner is not None else None
    batches: list[Tensor] = []
    per_step = math.ceil(settings.examples / (settings.steps - settings.steps // 2))
    for step in range(settings.steps):
        if learner is not None and learner_optimizer is not None:
            for _ in range(STUDENT_STEPS):
                with torch.no_grad():
                    inputs = _ranged(generator(torch.randn(settings.batch_size, LATENT)), settings)
                    answers = objective.teacher(inputs)
                learner_optimizer.zero_grad()
                torch.autograd.backward(functional.l1_loss(learner(inputs), answers))
                learner_optimizer.step()
        inputs = _ranged(generator(torch.randn(settings.batch_size, LATENT)), settings)
        optimizer.zero_grad()
        torch.autograd.backward(objective.loss(inputs, None, learner))
        optimizer.step()
        schedule.step()
        if step >= settings.steps // 2:
            with torch.no_grad():
                while len(inputs) < per_step:
                    more = _ranged(generator(torch.randn(settings.batch_size, LATENT)), settings)
                    inputs = torch.cat([inputs, more])
            batches.append(inputs[:per_step].detach())
    return torch.cat(batches)[-settings.examples :]


def _generator(shape: tuple[int, ...]) -> nn.Module:
    """Return a fresh generator from (N, LATENT) to (N, *shape), unbounded: upsampling convolutions for images."""
    if len(shape) != 3:
        return nn.Sequential(
            nn.Linear(LATENT, 256), nn.ReLU(), nn.Linear(256, math.prod(shape)), nn.Unflatten(1, shape)
        )
    channels, height, width = shape
    quarter = (math.ceil(height / 4), math.ceil(width / 4))
    return nn.Sequential(
        nn.Linear(LATENT, 64 * math.prod(quarter)),
        nn.Unflatten(1, (64, *quarter)),
        nn.BatchNorm2d(64),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.LeakyReLU(0.2),
        nn.Upsample(size=(height, width)),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, channels, 3, padding=1),
        nn.BatchNorm2d(channels, affine=False),
    )


def _ranged(raw: Tensor, settings: DataFree) -> Tensor:
    return settings.low + (settings.high - settings.low) * torch.sigmoid(raw)


def _norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
