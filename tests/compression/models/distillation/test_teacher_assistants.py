"""Assistants: sizes in equal ratios, none where none is needed, each learning from what it should."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models.distillation import distill, teacher_assistants
from fedpress.compression.models.distillation.settings import Assistants, Distillation

SETTINGS = Distillation(epochs=2)


@given(st.integers(100, 10**7), st.floats(1.01, 1e4), st.floats(1.5, 20))
def test_steps_are_equal_as_few_as_do_and_no_larger_than_the_factor(student: int, ratio: float, factor: float) -> None:
    teacher = math.ceil(student * ratio)
    found = teacher_assistants.sizes(teacher, student, factor)
    steps = [one / other for one, other in zip([teacher, *found], [*found, student], strict=True)]
    assert max(steps) <= factor * 1.02 and max(steps) <= min(steps) * 1.03  # sizes are whole numbers
    assert not found or (teacher / student) ** (1 / len(found)) > factor * 0.999


def model(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3))


def of_size(parameters: int) -> nn.Module:
    return model((parameters - 3) // 9)


def inputs() -> Tensor:
    return torch.randn(64, 5, generator=torch.Generator().manual_seed(1))


def through(factor: float, dense: bool = False, asked: list[int] | None = None) -> list[Tensor]:
    def make(parameters: int) -> nn.Module:
        if asked is not None:
            asked.append(parameters)
        return of_size(parameters)

    settings = Assistants(factor, dense)
    made = teacher_assistants.distill_through(
        model(64), model(2), inputs(), SETTINGS, settings, parameters=579, make=make, seed=0
    )
    return list(made.state_dict().values())


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_student_that_is_large_enough_has_none() -> None:
    asked: list[int] = []
    plain = distill.distill(model(64), model(2), inputs(), SETTINGS, seed=0)
    for dense in (False, True):
        assert same(through(30.0, dense, asked), list(plain.state_dict().values()))
    assert asked == []


def test_assistants_are_made_from_large_to_small_and_teach() -> None:
    asked: list[int] = []
    chain = through(4.0, asked=asked)
    assert asked == teacher_assistants.sizes(579, 21, 4.0) and len(asked) == 2 and asked == sorted(asked, reverse=True)
    assert same(chain, through(4.0)) and not same(chain, through(4.0, dense=True)) and not same(chain, through(30.0))


@pytest.mark.parametrize("factor", [1.0, 0.0, float("nan")])
def test_a_factor_that_is_no_step_down_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="expected greater than 1|a finite number"):
        Assistants(factor)
