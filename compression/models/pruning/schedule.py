"""Pruning as a whole: settings, schedules, and the watch on accuracy; single steps are in `prune` and `masks`.

| schedule | what is left after part t of the way | |
|---|---|---|
| `one_shot` | everything at once, from the teacher | |
| `iterative` | final^t: each step removes the same part of what is left, then trains | [1] |
| `cubic` | 1 - ratio * (1 - (1 - t)^3): fast while there is plenty, slow in the end | [2] |
| `lottery` | as `iterative`, but training starts from early weights again, rewound | [3], [4] |

The accuracy cliff: with a `tolerance`, accuracy on validation data is watched after every step. A step that costs too
much is undone and the next one is half as far; at the fourth that has to be undone, pruning stops there. The way,
with what was undone, is returned as data.

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
from dataclasses import dataclass
from typing import Final, NamedTuple

from torch import Tensor, nn

from fedpress.compression import seeds
from fedpress.compression.models.pruning import importance, penalties, structural, weights
from fedpress.compression.models.pruning.fine_tuning import FineTune
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.pruning.penalties import Penalty
from fedpress.compression.models.pruning.weights import Masks
from fedpress.compression.models.task import Examples, Task, evaluate

GRANULARITIES: Final = ("channels", "weights", "2:4")
SCHEDULES: Final = ("one_shot", "iterative", "cubic", "lottery")
PENALTIES: Final = ("none", "l1", "group_lasso")
HALVINGS: Final = 3
"""How often, in all, the step may be halved; where it would have to be once more, pruning stops."""
SMALLEST: Final = 0.01
"""The part of the parameters that `ratio: auto` goes down to, if accuracy holds that far."""


@dataclass(frozen=True)
class Pruning:
    """How a model is pruned.

    >>> Pruning(ratio=0.9, granularity="weights", ranking="erk", schedule="cubic", steps=4).importance
    'l2'
    >>> Pruning(ratio=0.9, ranking="erk")
    Traceback (most recent call last):
    ValueError: ranking 'erk' gives densities of single weights: granularity must be 'weights', got 'channels'

    Attributes:
        ratio: The part of the parameters that is removed, in (0, 1); "auto": the largest within `tolerance`.
        granularity: What is removed: "channels" (with neurons, feed-forward columns and attention heads; the model is
            smaller), "weights" (a mask; the model is sparse) or "2:4" (half the weights, in blocks that a GPU knows).
        importance: What goes first, one of `importance.IMPORTANCES`.
        ranking: Among what, one of `importance.RANKINGS`.
        schedule: One of `SCHEDULES`; "lottery" is for weights.
        steps: Of the schedule, 1 for "one_shot".
        fine_tune_epochs: After each step; 0: none. For "lottery" as many as training takes.
        tolerance: How much accuracy on validation data may be lost, a fraction such as 0.01; None: not watched.
        penalty: Added to the loss before anything is pruned: "l1" for weights, "group_lasso" for channels, or "none".
        penalty_weight: Of that term.
        penalty_epochs: Of that training.
    """

    ratio: float | str = 0.5
    granularity: str = "channels"
    importance: str = "l2"
    ranking: str = "uniform"
    schedule: str = "one_shot"
    steps: int = 1
    fine_tune_epochs: int = 5
    tolerance: float | None = None
    penalty: str = "none"
    penalty_weight: float = 1e-4
    penalty_epochs: int = 5

    def __post_init__(self) -> None:
        for name, allowed in (
            ("granularity", GRANULARITIES),
            ("importance", importance.IMPORTANCES),
            ("ranking", importance.RANKINGS),
            ("schedule", SCHEDULES),
            ("penalty", PENALTIES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if isinstance(self.ratio, str) and self.ratio != "auto":
            raise ValueError(f"ratio must be a number in (0, 1) or 'auto', got {self.ratio!r}")
        if not isinstance(self.ratio, str) and not 0 < self.ratio < 1:
            raise ValueError(f"ratio is the part of the parameters removed, in (0, 1), got {self.ratio}")
        if self.ratio == "auto" and self.tolerance is None:
            raise ValueError("ratio 'auto' is the largest within a tolerance of accuracy, but tolerance is None")
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance is a fraction in [0, 1), got {self.tolerance}; 0.01 is a point")
        if self.schedule == "one_shot" and self.steps != 1:
            raise ValueError(f"schedule 'one_shot' has one step, got {self.steps}; 'iterative' has more")
        if self.steps < 1 or self.fine_tune_epochs < 0 or self.penalty_epochs < 1:
            raise ValueError(
                "steps and penalty_epochs must be at least 1 and fine_tune_epochs at least 0,"
                f" got {self.steps}, {self.penalty_epochs} and {self.fine_tune_epochs}"
            )
        if not self.penalty_weight > 0:
            raise ValueError(f"penalty_weight must be above 0, got {self.penalty_weight}; penalty 'none' is without")
        if self.ranking == "erk" and self.granularity != "weights":
            raise ValueError(
                f"ranking 'erk' gives densities of single weights: granularity must be 'weights',"
                f" got {self.granularity!r}"
            )
        if self.schedule == "lottery" and self.granularity != "weights":
            raise ValueError(
                f"schedule 'lottery' rewinds single weights: granularity must be 'weights', got {self.granularity!r}"
            )
        if self.granularity == "2:4" and (self.schedule, self.ratio, self.ranking) != ("one_shot", 0.5, "uniform"):
            raise ValueError(
                "granularity '2:4' removes half the weights at once, within each block of four: expected"
                " schedule 'one_shot', ratio 0.5 and ranking 'uniform',"
                f" got {self.schedule!r}, {self.ratio} and {self.ranking!r}"
            )

    def kept(self, progress: float) -> float:
        """The part of the parameters left after a part of the way, both in [0, 1].

        >>> [round(Pruning(ratio=0.9, schedule="cubic", steps=3).kept(t / 3), 3) for t in range(4)]
        [1.0, 0.367, 0.133, 0.1]
        """
        final = SMALLEST if isinstance(self.ratio, str) else 1 - self.ratio
        if self.schedule == "cubic":
            return 1 - (1 - final) * (1 - (1 - progress) ** 3)
        kept: float = final**progress
        return kept


class Step(NamedTuple):
    """One step of the way; the first is the model before anything was removed.

    Attributes:
        kept: Part of the teacher's parameters that are left.
        parameters: How many these are.
        accuracy: On validation data after training; a fraction.
        taken: Whether the step was kept; if not, it was undone.
    """

    kept: float
    parameters: int
    accuracy: float
    taken: bool


class Pruned(NamedTuple):
    """What is left.

    Attributes:
        model: Smaller, or with zeros where `masks` say so.
        masks: Of single weights; None where channels were removed.
        steps: The curve of accuracy, with what was undone.
    """

    model: nn.Module
    masks: Masks | None
    steps: tuple[Step, ...]

    @property
    def ratio(self) -> float:
        """The part of the parameters that was removed in the end."""
        return 1 - next(step.kept for step in reversed(self.steps) if step.taken)


def prune(
    teacher: nn.Module,
    settings: Pruning,
    *,
    task: Task,
    examples: Examples,
    validation: Examples,
    fine_tune: FineTune,
    rewind: nn.Module | None = None,
    seed: int = 0,
) -> Pruned:
    """Carry the settings out: the same arguments give the same model.

    Args:
        teacher: A trained model; untouched.
        settings: How to prune.
        task: Its loss gives the gradients for `taylor`, its `correct` the accuracy.
        examples: For these gradients, with labels or a teacher's answers; the first is what models are traced with.
        validation: Where accuracy is watched.
        fine_tune: Trains between the steps, such as `fine_tuning.training` or `fine_tuning.distilling`.
        rewind: For "lottery": the teacher as it was when its training began, or early on.
        seed: Of the training, and of "random".

    Raises:
        BudgetError: The ratio cannot be reached.
        PruneError: The model cannot be pruned.
        ValueError: A lottery ticket without what to rewind to.
    """
    if (settings.schedule == "lottery") != (rewind is not None):
        raise ValueError("schedule 'lottery' needs early weights to rewind to, and no other schedule takes them")
    whole = structural.parameters_of(teacher)
    run = _Run(settings, task, examples, fine_tune, rewind, seed, whole)
    before = evaluate(copy.deepcopy(teacher), task, validation).accuracy
    steps = [Step(1.0, whole, before, True)]
    start = run.penalized(teacher)
    best: tuple[nn.Module, Masks | None] = (start, None)
    progress, stride, attempt = 0.0, 1 / settings.steps, 0
    while progress < 1 - 1e-9 and stride * settings.steps > 2.0**-HALVINGS - 1e-9:
        attempt += 1
        there = min(1.0, progress + stride)
        model, mask = (start, None) if settings.schedule == "one_shot" else best
        try:
            model, mask = run.step(model, mask, settings.kept(there), attempt)
        except structural.BudgetError:
            if settings.tolerance is None:
                raise
            stride /= 2
            continue
        left = structural.parameters_of(model) if mask is None else weights.parameters_left(model, mask)
        accuracy = evaluate(model, task, validation).accuracy
        taken = settings.tolerance is None or accuracy >= before - settings.tolerance
        steps.append(Step(left / whole, left, accuracy, taken))
        if taken:
            best, progress = (model, mask), there
        else:
            stride /= 2
    return Pruned(*best, tuple(steps))


class _Run(NamedTuple):
    settings: Pruning
    task: Task
    examples: Examples
    fine_tune: FineTune
    rewind: nn.Module | None
    seed: int
    parameters: int

    def penalized(self, teacher: nn.Module) -> nn.Module:
        """The teacher after training with the penalty, if there is one."""
        if self.settings.penalty == "none":
            return copy.deepcopy(teacher)
        term: Penalty = penalties.l1
        if self.settings.penalty == "group_lasso":
            term = penalties.GroupLasso(teacher, self.examples.inputs[:1])
        weighted: Callable[[nn.Module], Tensor] = lambda model: self.settings.penalty_weight * term(model)  # noqa: E731
        seed = seeds.derive("penalty", self.seed)
        return self.fine_tune(teacher, epochs=self.settings.penalty_epochs, seed=seed, penalty=weighted)

    def step(self, model: nn.Module, within: Masks | None, kept: float, attempt: int) -> tuple[nn.Module, Masks | None]:
        """Prune the model until a part `kept` of the teacher's parameters is left, and train it."""
        settings = self.settings
        gradients = None
        if settings.importance == "taylor":
            gradients = importance.gradients(model, self.task, self.examples)
        criterion = Criterion(settings.importance, settings.ranking, gradients, seeds.derive("random", self.seed))
        count = round(kept * self.parameters)
        if settings.granularity == "channels":
            smaller = structural.prune_to(model, self.examples.inputs[:1], count, criterion=criterion)
            return self._trained(smaller, attempt), None
        mask = self._mask(model, within, count, criterion)
        start = model if self.rewind is None else self.rewind
        return weights.train_within(start, mask, lambda masked: self._trained(masked, attempt)), mask

    def _mask(self, model: nn.Module, within: Masks | None, count: int, criterion: Criterion) -> Masks:
        if self.settings.granularity == "2:4":
            return weights.semi_structured(model, criterion)
        covered = sum(weight.numel() for weight in weights.weights_of(model).values())
        left = count - (self.parameters - covered)
        if left < 1:
            raise structural.BudgetError(
                f"a sparse model of {count:,} parameters is impossible: the {self.parameters - covered:,} of biases and"
                " norms are not pruned; lower the ratio"
            )
        return weights.by_importance(model, left / covered, criterion, within)

    def _trained(self, model: nn.Module, attempt: int) -> nn.Module:
        if self.settings.fine_tune_epochs == 0:
            return model
        seed = seeds.derive("fine-tune", self.seed, attempt)
        return self.fine_tune(model, epochs=self.settings.fine_tune_epochs, seed=seed)
