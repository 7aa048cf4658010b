"""Pruning schedules with fine-tuning between the steps, and a limit on the loss of accuracy.

| schedule | fraction kept at progress t | |
|---|---|---|
| `one_shot` | everything is removed in one step, from the teacher | |
| `iterative` | final^t: each step removes the same fraction of the rest, then trains | [1] |
| `cubic` | 1 - removed_fraction * (1 - (1 - t)^3): fast at first, slow in the end | [2] |
| `lottery` | as `iterative`, but training restarts from rewound early weights | [3], [4] |

With a `tolerance`, accuracy on validation data is measured after every step. A step that costs more is undone and the
stride is halved; at the fourth such step pruning stops. All steps, also those undone, are returned.

[1] S. Han, J. Pool, J. Tran, W. Dally, "Learning both Weights and Connections for Efficient Neural Networks", NIPS
    2015, section 3.4.
[2] M. Zhu, S. Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", ICLR 2018
    workshop, equation 1.
[3] J. Frankle, M. Carbin, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks", ICLR 2019.
[4] J. Frankle, G. K. Dziugaite, D. M. Roy, M. Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis",
    ICML 2020, section 4: rewinding to an early step in place of the first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from torch import Tensor, nn

from fedpress.compression import seeds
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import masks
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.masks import Masks
from fedpress.compression.models.pruning import (
    fine_tuning,
    importance,
    penalties,
    sparsegpt,
    structural,
    token_rows,
    weights,
)  # fmt: skip
from fedpress.compression.models.pruning.fine_tuning import FineTune
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.pruning.penalties import Penalty
from fedpress.compression.models.pruning.settings import Pruning
from fedpress.compression.models.step import Materials, PruningStep, Student
from fedpress.compression.models.task import Examples, Task, evaluate

HALVINGS: Final = 3
"""Number of times that the stride may be halved before pruning stops."""
SMALLEST: Final = 0.01
"""Fraction of the parameters at which `removed_fraction: auto` ends, if accuracy holds that far."""


@dataclass(frozen=True)
class Prune:
    """Step: remove a fraction of the parameters, with distillation from the global model between the steps.

    Attributes:
        removed_fraction: Fraction of the parameters in (0, 1), or "auto": the largest within the settings' tolerance.
        settings: Order of removal, and the schedule.
        distillation: Distillation between the steps, apart from its epochs.
    """

    removed_fraction: float | Literal["auto"]
    settings: Pruning = Pruning()
    distillation: Distillation = Distillation()

    def check(self, model: nn.Module, task: Task) -> None:
        """Check that the model can be pruned.

        Args:
            model: Global model with any weights; untouched.
            task: Task of the model.

        Raises:
            PruneError: Nothing can be removed, or no layer has an ignored name.
        """
        criterion = importance.named(self.settings)
        if self.settings.granularity == "channels":
            structural.keep_fraction(model, model_inputs.first(task.data().validation.inputs), 0.5, criterion=criterion)
        else:
            weights.prunable(model, criterion)

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the pruned student, with masks if single weights are removed, and the curve of its accuracy.

        Args:
            student: Student to prune.
            materials: Models, data and seed.
        """
        teacher, inputs, targets, axis = materials.model, materials.inputs, materials.targets, materials.class_axis
        proxy = Examples(inputs, targets) if targets is not None else fine_tuning.answered(teacher, inputs, axis)
        train = fine_tuning.distilling(teacher, inputs, self.distillation, targets, axis)
        if self.settings.penalty != "none":
            train = fine_tuning.training(materials.task, proxy)
        result = prune(
            student.model,
            self.removed_fraction,
            self.settings,
            task=materials.task,
            examples=proxy,
            validation=materials.task.data().validation,
            fine_tune=train,
            rewind=materials.early if self.settings.schedule == "lottery" else None,
            seed=materials.seed,
        )
        return replace(student.after("pruned", result.model), masks=result.masks, curve=result.steps)


class PruningResult(NamedTuple):
    """Result of a pruning schedule.

    Attributes:
        model: Smaller model, or one with zeros outside the masks.
        masks: Masks of single weights, by parameter name; None where channels were removed.
        steps: Figures of all steps, also of those undone.
    """

    model: nn.Module
    masks: Masks | None
    steps: tuple[PruningStep, ...]

    @property
    def removed_fraction(self) -> float:
        """Fraction of the parameters that was removed."""
        return 1 - next(step.kept for step in reversed(self.steps) if step.taken)


def kept(schedule: str, removed_fraction: float | Literal["auto"], progress: float) -> float:
    """Return the fraction of the parameters kept at a point of the schedule.

    >>> [round(kept("cubic", 0.9, t / 3), 3) for t in range(4)]
    [1.0, 0.367, 0.133, 0.1]

    Args:
        schedule: Name of the schedule.
        removed_fraction: Fraction removed in the end, in (0, 1), or "auto".
        progress: Progress in [0, 1].
    """
    final = SMALLEST if removed_fraction == "auto" else 1 - removed_fraction
    if schedule == "cubic":
        return 1 - (1 - final) * (1 - (1 - progress) ** 3)
    fraction: float = final**progress
    return fraction


def prune(
    teacher: nn.Module,
    removed_fraction: float | Literal["auto"],
    settings: Pruning = Pruning(),
    *,
    task: Task,
    examples: Examples,
    validation: Examples,
    fine_tune: FineTune,
    rewind: nn.Module | None = None,
    seed: int = 0,
) -> PruningResult:
    """Return the model after removing a fraction of its parameters; equal arguments give equal models.

    Args:
        teacher: Trained model; untouched.
        removed_fraction: Fraction of the parameters to remove, in (0, 1); "auto": the largest within the settings'
            tolerance.
        settings: Order of removal, and the schedule.
        task: Task whose `loss` gives the gradients for `taylor`, and whose `correct` the accuracy.
        examples: Examples for these gradients, with labels or a teacher's answers; models are traced with the first.
        validation: Examples on which accuracy is measured.
        fine_tune: Training between the steps, from `fine_tuning.training` or `fine_tuning.distilling`.
        rewind: Teacher before its training, or early in it; for "lottery" alone.
        seed: Seed of the training, and of the importance "random".

    Raises:
        BudgetError: That fraction cannot be removed.
        PruneError: The model cannot be pruned.
        ValueError: "lottery" without early weights, or settings that cannot remove this fraction.
    """
    settings.check(removed_fraction)
    if (settings.schedule == "lottery") != (rewind is not None):
        raise ValueError("schedule 'lottery' needs early weights to rewind to, and no other schedule takes them")
    whole = structural.parameters_of(teacher)
    run = _Run(settings, task, examples, fine_tune, rewind, seed, whole)
    before = evaluate(copy.deepcopy(teacher), task, validation).accuracy
    steps = [PruningStep(1.0, whole, before, True)]
    start = token_rows.with_used_rows(settings, run.penalized(teacher), examples.inputs, validation.inputs)
    best: tuple[nn.Module, Masks | None] = (start, None)
    progress, stride, attempt = 0.0, 1 / settings.steps, 0
    while progress < 1 - 1e-9 and stride * settings.steps > 2.0**-HALVINGS - 1e-9:
        attempt += 1
        target = min(1.0, progress + stride)
        model, mask = (start, None) if settings.schedule == "one_shot" else best
        try:
            model, mask = run.step(model, mask, kept(settings.schedule, removed_fraction, target), attempt)
        except structural.BudgetError:
            if settings.tolerance is None:
                raise
            stride /= 2
            continue
        left = structural.parameters_of(model) if mask is None else weights.parameters_left(model, mask)
        accuracy = evaluate(model, task, validation).accuracy
        taken = settings.tolerance is None or accuracy >= before - settings.tolerance
        steps.append(PruningStep(left / whole, left, accuracy, taken))
        if taken:
            best, progress = (model, mask), target
        else:
            stride /= 2
    return PruningResult(*best, tuple(steps))


class _Run(NamedTuple):
    """Arguments of `prune` that all steps share."""

    settings: Pruning
    task: Task
    examples: Examples
    fine_tune: FineTune
    rewind: nn.Module | None
    seed: int
    parameters: int

    def penalized(self, teacher: nn.Module) -> nn.Module:
        """Return the teacher trained with the penalty; without a penalty, a copy."""
        if self.settings.penalty == "none":
            return copy.deepcopy(teacher)
        term: Penalty = penalties.l1
        if self.settings.penalty == "group_lasso":
            term = penalties.GroupLasso(
                teacher, model_inputs.first(self.examples.inputs), importance.named(self.settings)
            )
        weighted: Callable[[nn.Module], Tensor] = lambda model: self.settings.penalty_weight * term(model)  # noqa: E731
        seed = seeds.derive("penalty", self.seed)
        return self.fine_tune(teacher, epochs=self.settings.penalty_epochs, seed=seed, penalty=weighted)

    def step(
        self, model: nn.Module, within: Masks | None, fraction: float, attempt: int
    ) -> tuple[nn.Module, Masks | None]:
        """Prune the model to a fraction of the teacher's parameters, and train it."""
        settings = self.settings
        gradients = None
        if settings.importance == "taylor":
            gradients = importance.gradients(model, self.task, self.examples)
        norms = importance.norms(model, self.examples.inputs) if settings.importance == "wanda" else None
        criterion = importance.of_settings(settings, gradients, seeds.derive("random", self.seed), norms)
        count = round(fraction * self.parameters)
        if settings.granularity == "channels":
            smaller = structural.prune_to(model, model_inputs.first(self.examples.inputs), count, criterion=criterion)
            return self._trained(smaller, attempt), None
        density = self._density(model, count, criterion)
        if settings.importance == "sparsegpt":
            model, mask = sparsegpt.pruned(model, self.examples.inputs, density, settings, within, seed=self.seed)
        elif settings.granularity == "2:4":
            mask = weights.semi_structured(model, criterion)
        else:
            mask = weights.by_importance(model, density, criterion, within)
        start = model if self.rewind is None else self.rewind
        return masks.train_within(start, mask, lambda masked: self._trained(masked, attempt)), mask

    def _density(self, model: nn.Module, count: int, criterion: Criterion) -> float:
        """Return the density of the covered weights at which `count` parameters of the teacher's are left."""
        if self.settings.granularity == "2:4":
            return 0.5
        every = masks.weights_of(model)
        covered = sum(every[name].numel() for name in weights.prunable(model, criterion))
        left = count - (self.parameters - covered)
        if left < 1:
            raise structural.BudgetError(
                f"a sparse model of {count:,} parameters is impossible: the {self.parameters - covered:,} of biases,"
                " norms and ignored layers are not pruned; lower removed_fraction"
            )
        return left / covered

    def _trained(self, model: nn.Module, attempt: int) -> nn.Module:
        if self.settings.fine_tune_epochs == 0:
            return model
        seed = seeds.derive("fine-tune", self.seed, attempt)
        return self.fine_tune(model, epochs=self.settings.fine_tune_epochs, seed=seed)
