"""Budgets of every kind, each met and used."""

from typing import Any

import pytest
import torch
from torch import nn

from fedpress.compression.models import architecture
from fedpress.compression.models.bundles import writer
from fedpress.compression.models.device_speed import DeviceSpeed
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.quantization import quantize
from fedpress.compression.models.students import budgets
from fedpress.compression.models.students.budgets import student_of
from fedpress.compression.models.students.settings import Budget

EXAMPLE = torch.zeros(1, 1, 8, 8)
SPEED = DeviceSpeed(call_ms=0.01, convolution_call_ms=0.01, convolution_ms=0.05, matrix_ms=0.1, moved_ms=0.2)


def teacher() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 192),
        nn.ReLU(),
        nn.Linear(192, 10),
    )


def file_bytes(student: nn.Module) -> int:
    weights = quantize.quantize(student)
    metrics = {"validation_accuracy": 0.9876}
    return len(writer.save(student, weights, EXAMPLE, task="digits", tier="phone", version=60, metrics=metrics))


@pytest.mark.parametrize("budget", [Budget(parameters=20_000), Budget(parameters=0.2)])
def test_a_budget_of_parameters(budget: Budget) -> None:
    most = 20_000 if isinstance(budget.parameters, int) else 0.2 * 105_226
    assert 0.9 * most < structural.parameters_of(student_of(teacher(), EXAMPLE, budget)) <= most


@pytest.mark.parametrize("most", [20_000, 10_000, 5_000])
def test_a_budget_of_bytes(most: int) -> None:
    student = student_of(teacher(), EXAMPLE, Budget(bundle_bytes=most))
    assert 0.75 * most < file_bytes(student) <= most
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.uniform_(-1, 1)  # whatever distillation makes of the weights
    assert file_bytes(student) <= most


@pytest.mark.parametrize(
    "budget",
    [Budget(flops=200_000), Budget(memory_bytes=60_000), Budget(latency_ms=0.11, device=SPEED)],
    ids=lambda budget: budget.kind,
)
def test_a_budget_of_what_a_forward_pass_costs(budget: Budget) -> None:
    most = budgets.most(budget, teacher())
    student = student_of(teacher(), EXAMPLE, budget)
    assert 0.9 * most < budgets.cost_of(student, EXAMPLE, budget) <= most < budgets.cost_of(teacher(), EXAMPLE, budget)


def test_a_teacher_within_the_budget_is_its_own_student() -> None:
    student = student_of(model := teacher(), EXAMPLE, Budget(parameters=1.0))
    assert student is not model
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    "budget", [Budget(parameters=10), Budget(parameters=1e-4), Budget(bundle_bytes=300), Budget(flops=9)]
)
def test_an_impossible_budget_is_refused(budget: Budget) -> None:
    with pytest.raises(structural.BudgetError, match="impossible.*105,226"):
        student_of(teacher(), EXAMPLE, budget)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give one budget out of parameters, .*; got none"),
        ({"parameters": 5, "bundle_bytes": 5}, "got parameters and bundle_bytes"),
        ({"parameters": 0.0}, "a fraction of the global model's, 0 < fraction <= 1"),
        ({"parameters": 1.5}, "a fraction of the global model's, 0 < fraction <= 1"),
        ({"parameters": 0}, "a whole number >= 1"),
        ({"removed_fraction": 1.0}, "0 < removed_fraction < 1, or auto"),
        ({"removed_fraction": "most"}, "0 < removed_fraction < 1, or auto"),
        ({"bundle_bytes": -3}, "bundle_bytes: got .*, expected greater than or equal to 1"),
        ({"flops": 0}, "flops: got .*, expected greater than or equal to 1"),
        ({"latency_ms": 1.0}, "latency_ms and device go together"),
        ({"flops": 5, "device": SPEED}, "latency_ms and device go together"),
        ({"latency_ms": 0, "device": SPEED}, "latency_ms: got .*, expected greater than 0"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**given)


@pytest.mark.parametrize("budget", [Budget(parameters=0.2), Budget(bundle_bytes=10_000)])
def test_the_criterion_says_what_goes_first(budget: Budget) -> None:
    model = teacher()
    by_norm, by_chance = (student_of(model, EXAMPLE, budget, Criterion(name)) for name in ("l2", "random"))
    assert architecture.shapes(by_norm) == architecture.shapes(by_chance)
    assert not torch.equal(next(by_norm.parameters()), next(by_chance.parameters()))
