"""The loss is the paper's: by hand, with labels, weighed, and of the same size at any temperature."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedpress.compression.models.distillation import teachers
from fedpress.compression.models.distillation.loss import HIDDEN, distillation_loss, softened_divergence
from fedpress.compression.models.distillation.settings import LossWeights

TEACHER = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.25, 0.0]])
STUDENT = torch.tensor([[1.0, 1.0, -3.0], [0.0, 2.0, 0.5]])


def by_hand(student: list[float], teacher: list[float], temperature: float) -> float:
    def softened(logits: list[float]) -> list[float]:
        powers = [math.exp(logit / temperature) for logit in logits]
        return [power / sum(powers) for power in powers]

    pairs = zip(softened(teacher), softened(student), strict=True)
    return temperature**2 * sum(p * math.log(p / q) for p, q in pairs)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_that_of_the_paper(temperature: float) -> None:
    expected = [by_hand(s, t, temperature) for s, t in zip(STUDENT.tolist(), TEACHER.tolist(), strict=True)]
    found = distillation_loss(STUDENT, TEACHER, temperature=temperature)
    assert float(found) == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_labels_add_weighted_cross_entropy() -> None:
    targets = torch.tensor([0, 2])
    soft = distillation_loss(STUDENT, TEACHER, temperature=3.0)
    hard = nn.functional.cross_entropy(STUDENT, targets)
    found = distillation_loss(STUDENT, TEACHER, temperature=3.0, targets=targets, weights=LossWeights(0.7, 0.3))
    torch.testing.assert_close(found, 0.7 * soft + 0.3 * hard)


def test_hidden_labels_have_no_part_in_the_loss() -> None:
    shown, hidden = torch.tensor([0, 2]), torch.tensor([0, HIDDEN])
    labels = LossWeights(teacher=0.0, labels=0.3)
    only_first = distillation_loss(STUDENT[:1], TEACHER[:1], temperature=1.0, targets=shown[:1], weights=labels)
    found = distillation_loss(STUDENT, TEACHER, temperature=1.0, targets=hidden, weights=labels)
    torch.testing.assert_close(found, only_first)
    none = torch.tensor([HIDDEN, HIDDEN])
    soft = distillation_loss(STUDENT, TEACHER, temperature=3.0)
    torch.testing.assert_close(distillation_loss(STUDENT, TEACHER, temperature=3.0, targets=none), soft)


def test_importance_weighs_examples_and_places_count_alike() -> None:
    each = softened_divergence(STUDENT, TEACHER, 2.0)
    found = distillation_loss(STUDENT, TEACHER, temperature=2.0, importance=torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(found, 4 * (0.5 * each[0] + 1.5 * each[1]) / 2)
    places = [logits.T[None] for logits in (STUDENT, TEACHER)]  # one sequence of two places
    torch.testing.assert_close(
        distillation_loss(*places, temperature=2.0), distillation_loss(STUDENT, TEACHER, temperature=2.0)
    )


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=6), st.floats(-10, 10), st.floats(0.5, 8))
def test_a_student_that_answers_alike_has_no_loss(logits: list[float], shift: float, temperature: float) -> None:
    row = torch.tensor([logits], dtype=torch.float64)
    assert abs(float(distillation_loss(row + shift, row, temperature=temperature))) < 1e-9


@given(st.floats(1, 50))
def test_gradients_keep_their_size_at_high_temperature(temperature: float) -> None:
    """Section 2.1 of the paper: for high T the gradient tends to the difference of the centerd logits over classes."""
    student = STUDENT.double().requires_grad_()
    distillation_loss(student, TEACHER.double(), temperature=temperature * 100).backward()
    centerd = (STUDENT - STUDENT.mean(1, keepdim=True)) - (TEACHER - TEACHER.mean(1, keepdim=True))
    assert student.grad is not None
    torch.testing.assert_close(student.grad, centerd.double() / 3 / 2, rtol=0.05, atol=0.01)


def test_the_loss_is_the_mean_over_all_places() -> None:
    student, teacher = (torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    targets = torch.arange(24).reshape(4, 6) % 3
    targets[0, :5] = HIDDEN
    found = distillation_loss(
        teachers.by_class(student),
        teachers.by_class(teacher),
        temperature=2.0,
        targets=targets,
        weights=LossWeights(1.0, 0.5),
    )
    rows = [part.flatten(0, 1) for part in (student, teacher)]
    divergence = functional.kl_div(*((row / 2).log_softmax(1) for row in rows), reduction="batchmean", log_target=True)
    expected = 4 * divergence + 0.5 * functional.cross_entropy(rows[0], targets.flatten(), ignore_index=HIDDEN)
    torch.testing.assert_close(found, expected)


@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 99))
def test_places_of_padding_count_in_nothing(length: int, more: int, seed: int) -> None:
    """However far a batch is padded, and whatever is there."""
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, 3, length + more, generator=draw) for _ in range(2))
    places = (torch.arange(length + more) < length).expand(2, -1)
    alone = distillation_loss(student[..., :length], teacher[..., :length], temperature=2.0)
    there = distillation_loss(student, teacher, temperature=2.0, places=places)
    assert float(there) == pytest.approx(float(alone), rel=1e-5)
