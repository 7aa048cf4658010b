"""Schedules reach the ratio, accuracy is watched and the step that costs too much undone; on digits."""

import copy
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpress.compression.models import masks
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.pruning import fine_tuning, structural, weights
from fedpress.compression.models.pruning.schedule import PruningResult, kept, prune
from fedpress.compression.models.pruning.settings import Pruning
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.task import evaluate
from fedpress.simulations.tasks.digits import Digits

TASK = Digits()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, nn.Module]:
    """An untrained model of a few thousand parameters, and what it is after training on digits."""
    with reproducible(0):
        fresh = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 10)
        )
    train = TASK.data().train
    return fresh, fine_tuning.training(TASK, train, 1e-2)(fresh, epochs=8, seed=0)


def carry_out(
    trained: tuple[nn.Module, nn.Module], removed_fraction: float | Literal["auto"], settings: Pruning, seed: int = 0
) -> PruningResult:
    fresh, teacher = trained
    data = TASK.data()
    return prune(
        teacher,
        removed_fraction,
        settings,
        task=TASK,
        examples=fine_tuning.answered(teacher, data.proxy.inputs),
        validation=data.validation,
        fine_tune=fine_tuning.training(TASK, data.proxy, 3e-3),
        rewind=fresh if settings.schedule == "lottery" else None,
        seed=seed,
    )


@given(
    removed_fraction=st.floats(0.01, 0.99),
    schedule=st.sampled_from(["one_shot", "iterative", "cubic"]),
    progress=st.lists(st.floats(0, 1), min_size=2, max_size=5),
)
def test_a_schedule_falls_from_everything_to_what_is_wanted(
    removed_fraction: float, schedule: str, progress: list[float]
) -> None:
    assert kept(schedule, removed_fraction, 0.0) == 1
    assert kept(schedule, removed_fraction, 1.0) == pytest.approx(1 - removed_fraction)
    parts = [kept(schedule, removed_fraction, part) for part in sorted(progress)]
    assert parts == sorted(parts, reverse=True)


@pytest.mark.parametrize(
    ("removed_fraction", "settings"),
    [
        (0.7, Pruning(fine_tune_epochs=3)),
        (0.7, Pruning(importance="taylor", ranking="global", schedule="iterative", steps=2, fine_tune_epochs=5)),
        (0.7, Pruning(penalty="group_lasso", penalty_weight=1e-3, penalty_epochs=2, fine_tune_epochs=3)),
        (0.8, Pruning(granularity="weights", ranking="erk", schedule="cubic", steps=3, fine_tune_epochs=4)),
        (0.9, Pruning(granularity="weights", importance="lamp", ranking="global", penalty="l1", fine_tune_epochs=4)),
        (0.7, Pruning(granularity="weights", schedule="lottery", steps=2, fine_tune_epochs=30)),
        (0.5, Pruning(granularity="2:4", fine_tune_epochs=2)),
        (0.5, Pruning(granularity="2:4", importance="sparsegpt", fine_tune_epochs=0)),
        (
            0.6,
            Pruning(granularity="weights", importance="sparsegpt", schedule="iterative", steps=2, fine_tune_epochs=1),
        ),
        (0.6, Pruning(granularity="weights", importance="wanda", fine_tune_epochs=2)),
        (0.6, Pruning(importance="wanda", fine_tune_epochs=3)),
    ],
    ids=lambda value: (
        f"{value.granularity}-{value.schedule}-{value.importance}-{value.penalty}"
        if isinstance(value, Pruning)
        else str(value)
    ),
)
def test_a_pruned_model_of_digits_is_as_small_as_asked_and_still_good(
    trained: Any, removed_fraction: float, settings: Pruning
) -> None:
    found = carry_out(trained, removed_fraction, settings)
    whole = structural.parameters_of(trained[1])
    assert found.removed_fraction == pytest.approx(removed_fraction, abs=0.05)
    assert len(found.steps) == settings.steps + 1 and all(step.taken for step in found.steps)
    assert [step.kept for step in found.steps] == sorted((step.kept for step in found.steps), reverse=True)
    assert found.steps[0].accuracy > 0.93 and found.steps[-1].accuracy > 0.85
    assert evaluate(found.model, TASK, TASK.data().validation).accuracy == found.steps[-1].accuracy
    if found.masks is None:
        assert structural.parameters_of(found.model) == found.steps[-1].parameters
        example = TASK.data().proxy.inputs[:1]
        assert structural.flops_of(found.model, example) < 0.7 * structural.flops_of(trained[1], example)
    else:
        masks.check(found.model, found.masks)
        assert weights.parameters_left(found.model, found.masks) == found.steps[-1].parameters
        assert structural.parameters_of(found.model) == whole
    if settings.granularity == "2:4":
        assert found.masks is not None and all(weights.is_semi_structured(mask) for mask in found.masks.values())


def test_a_lottery_ticket_holds_the_early_weights(trained: Any) -> None:
    settings = Pruning(granularity="weights", schedule="lottery", steps=2, fine_tune_epochs=0)
    found = carry_out(trained, 0.8, settings)
    assert found.masks is not None
    early, left = masks.weights_of(trained[0]), masks.weights_of(found.model)
    assert all(torch.equal(left[name], early[name] * mask) for name, mask in found.masks.items())


def test_the_step_over_the_cliff_is_undone_and_the_rate_halved(trained: Any) -> None:
    settings = Pruning(schedule="iterative", steps=3, fine_tune_epochs=2, tolerance=0.03)
    found = carry_out(trained, "auto", settings)
    least = found.steps[0].accuracy - 0.03
    assert all(step.taken == (step.accuracy >= least) for step in found.steps)
    assert 1 <= sum(not step.taken for step in found.steps) <= 4
    last = [step for step in found.steps if step.taken][-1]
    assert structural.parameters_of(found.model) == last.parameters < found.steps[0].parameters
    assert evaluate(found.model, TASK, TASK.data().validation).accuracy == last.accuracy
    assert found.removed_fraction == pytest.approx(1 - last.kept) and found.removed_fraction > 0.5


def test_without_tolerance_for_any_loss_nothing_that_hurts_is_removed(trained: Any) -> None:
    def spoilt(model: nn.Module, **_: Any) -> nn.Module:
        broken = copy.deepcopy(model)
        torch.nn.init.zeros_(broken[-1].weight)
        return broken

    data = TASK.data()
    found = prune(
        trained[1],
        0.5,
        Pruning(tolerance=0.0),
        task=TASK,
        examples=data.proxy,
        validation=data.validation,
        fine_tune=spoilt,
    )
    assert [step.taken for step in found.steps] == [True] + [False] * 4 and found.removed_fraction == 0
    before = trained[1].state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.model.state_dict().items())


def test_distillation_trains_between_the_steps_and_the_same_seed_gives_the_same_model(trained: Any) -> None:
    data, teacher = TASK.data(), trained[1]
    learn = fine_tuning.distilling(teacher, data.proxy.inputs, Distillation(learning_rate=1e-2))
    settings = Pruning(granularity="weights", fine_tune_epochs=3)
    one, two = (
        prune(
            teacher, 0.6, settings, task=TASK, examples=data.proxy, validation=data.validation, fine_tune=learn, seed=3
        )
        for _ in range(2)
    )
    assert one.steps == two.steps and one.steps[-1].accuracy > 0.85
    others = two.model.state_dict()
    assert all(torch.equal(tensor, others[name]) for name, tensor in one.model.state_dict().items())
    with pytest.raises(ValueError, match="takes no penalty"):
        learn(teacher, epochs=1, seed=0, penalty=lambda model: torch.zeros(()))


def test_a_lottery_without_early_weights_is_refused(trained: Any) -> None:
    data = TASK.data()
    ticket = Pruning(granularity="weights", schedule="lottery")
    for settings, rewind in ((ticket, None), (Pruning(), trained[0])):
        with pytest.raises(ValueError, match="early weights"):
            prune(
                trained[1],
                0.5,
                settings,
                task=TASK,
                examples=data.proxy,
                validation=data.validation,
                fine_tune=fine_tuning.training(TASK, data.proxy),
                rewind=rewind,
            )


def test_more_than_there_is_cannot_be_removed(trained: Any) -> None:
    for settings in (Pruning(granularity="channels"), Pruning(granularity="weights")):
        with pytest.raises(structural.BudgetError, match="impossible"):
            carry_out(trained, 0.9999, settings)
    found = carry_out(trained, 0.9999, Pruning(granularity="weights", tolerance=0.5, fine_tune_epochs=0))
    assert found.removed_fraction == 0 or found.steps[-1].taken
