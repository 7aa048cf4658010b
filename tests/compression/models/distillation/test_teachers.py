"""A teacher answers each input by itself and is left as it is; an ensemble adds up, one model at a time."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models.distillation import teachers
from fedpress.compression.models.distillation.loss import distillation_loss
from fedpress.compression.models.distillation.settings import Combine
from fedpress.compression.models.distillation.teachers import Ensemble, Single, TeacherError

COMBINES: list[Combine] = ["logits", "probabilities", "entropy", "confidence"]


def model(seed: int, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 3))


def inputs(count: int = 7) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(1))


def constant(logits: list[float]) -> nn.Module:
    layer = nn.Linear(5, len(logits))
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(logits))
    return layer


@pytest.mark.parametrize("combine", COMBINES)
def test_answers_change_nothing_and_do_not_depend_on_each_other(combine: Combine) -> None:
    models = [model(0).train(), model(1, width=9).train()]
    before = [tensor.clone() for one in models for tensor in one.state_dict().values()]
    teacher = Ensemble(lambda: models, combine)
    together = teacher.answers(inputs())
    apart = torch.cat([teacher.answers(one) for one in inputs().split(1)])
    torch.testing.assert_close(together, apart)
    after = [tensor for one in models for tensor in one.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(module.training for one in models for module in one.modules())
    assert together.dtype == torch.float32 and not together.requires_grad


@pytest.mark.parametrize("combine", COMBINES)
def test_an_ensemble_of_one_model_or_of_equal_ones_answers_as_that_model(combine: Combine) -> None:
    one = model(0)
    alone = Single(one).answers(inputs()).softmax(1)
    for count in (1, 3):
        found = Ensemble(lambda count=count: [one] * count, combine).answers(inputs())
        torch.testing.assert_close(found.softmax(1), alone)


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("useless", [math.nan, math.inf, 3e38])
def test_answers_that_are_not_finite_are_left_out(combine: Combine, useless: float) -> None:
    """Of a model that a hostile client has made, which is finite itself, most likely."""
    broken = nn.Sequential(constant([useless, 1.0, 2.0]), nn.Linear(3, 3))
    nn.init.constant_(broken[1].weight, 3e38)  # type: ignore[arg-type]
    alone = Ensemble(lambda: [model(0), model(1)], combine).answers(inputs())
    for models in ([broken, model(0), model(1)], [model(0), broken, model(1)], [model(0), model(1), broken]):
        torch.testing.assert_close(Ensemble(lambda models=models: models, combine).answers(inputs()), alone)
    with pytest.raises(TeacherError, match="no model of an ensemble gives finite answers"):
        Ensemble(lambda: [broken], combine).answers(inputs())


@pytest.mark.parametrize("combine", COMBINES)
def test_a_class_that_cannot_be_is_an_answer(combine: Combine) -> None:
    impossible = constant([-math.inf, 1.0, 2.0])
    found = Ensemble(lambda: [impossible, impossible], combine).answers(inputs(1)).softmax(1)
    torch.testing.assert_close(found, Single(impossible).answers(inputs(1)).softmax(1))


def test_models_are_made_one_at_a_time() -> None:
    alive = 0

    class Counted(nn.Linear):
        def __init__(self) -> None:
            nonlocal alive
            super().__init__(5, 3)
            alive += 1
            assert alive <= 2  # the one before may go only once this one has taken its place

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def models() -> Iterator[nn.Module]:
        for _ in range(5):
            yield Counted()

    assert Ensemble(models).answers(inputs()).shape == (7, 3)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.floats(-8, 8), min_size=3, max_size=3), min_size=1, max_size=4))
def test_means_are_what_they_say(logits: list[list[float]]) -> None:
    models, values = [constant(row) for row in logits], torch.tensor(logits)
    one = inputs(1)
    torch.testing.assert_close(Ensemble(lambda: models).answers(one)[0], values.mean(0), atol=1e-5, rtol=1e-5)
    probabilities = values.softmax(1)
    for combine, weights in {
        "probabilities": torch.ones(len(values)),
        "confidence": probabilities.amax(1),
        "entropy": (1 + torch.xlogy(probabilities, probabilities).sum(1) / torch.tensor(3.0).log()).clamp(min=1e-6),
    }.items():
        found = Ensemble(lambda: models, combine).answers(one)[0].softmax(0)  # type: ignore[arg-type]
        torch.testing.assert_close(found, (weights[:, None] * probabilities).sum(0) / weights.sum(), atol=2e-4, rtol=0)


def test_a_model_that_is_certain_counts_more() -> None:
    certain, unsure = constant([6.0, 0.0, 0.0]), constant([0.0, 1.0, 0.9])
    first = {
        combine: float(Ensemble(lambda: [certain, unsure], combine).answers(inputs(1)).softmax(1)[0, 0])
        for combine in COMBINES
    }
    assert first["entropy"] > first["confidence"] > first["probabilities"]


def test_the_mean_of_softened_answers_has_the_gradient_of_the_mean_loss() -> None:
    """Equation 5 of Son et al. (2021): learning from several teachers at once."""
    models, student = [model(0), model(1)], torch.randn(7, 3, requires_grad=True)
    together = Ensemble(lambda: models, "probabilities", 3.0).answers(inputs())
    (one,) = torch.autograd.grad(distillation_loss(student, together, temperature=3.0), student)
    losses = [distillation_loss(student, teachers.logits(m, inputs()), temperature=3.0) for m in models]
    (other,) = torch.autograd.grad(torch.stack(losses).mean(), student)
    torch.testing.assert_close(one, other)


def test_what_cannot_teach_is_refused() -> None:
    with pytest.raises(ValueError, match="combine is 'mean', expected one of logits"):
        Ensemble(lambda: [model(0)], "mean")  # type: ignore[arg-type]
    with pytest.raises(TeacherError, match="without models cannot teach"):
        Ensemble(list).answers(inputs())
    with pytest.raises(TeacherError, match=r"number 1 gives \(7, 2\), those before it \(7, 3\)"):
        Ensemble(lambda: [model(0), nn.Linear(5, 2)]).answers(inputs())
