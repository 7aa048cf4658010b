"""The loss is the paper's; distillation is reproducible, touches nothing else, and teaches."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models.distill import Distillation, Weights, distill, distillation_loss

TEACHER = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.25, 0.0]])
STUDENT = torch.tensor([[1.0, 1.0, -3.0], [0.0, 2.0, 0.5]])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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
    found = distillation_loss(STUDENT, TEACHER, temperature=3.0, targets=targets, weights=Weights(0.7, 0.3))
    torch.testing.assert_close(found, 0.7 * soft + 0.3 * hard)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=6), st.floats(-10, 10), st.floats(0.5, 8))
def test_a_student_that_answers_alike_has_no_loss(logits: list[float], shift: float, temperature: float) -> None:
    row = torch.tensor([logits], dtype=torch.float64)
    assert abs(float(distillation_loss(row + shift, row, temperature=temperature))) < 1e-9


@given(st.floats(1, 50))
def test_gradients_keep_their_size_at_high_temperature(temperature: float) -> None:
    """Section 2.1 of the paper: for high T the gradient tends to the difference of the centred logits over classes."""
    student = STUDENT.double().requires_grad_()
    distillation_loss(student, TEACHER.double(), temperature=temperature * 100).backward()
    centred = (STUDENT - STUDENT.mean(1, keepdim=True)) - (TEACHER - TEACHER.mean(1, keepdim=True))
    assert student.grad is not None
    torch.testing.assert_close(student.grad, centred.double() / 3 / 2, rtol=0.05, atol=0.01)


def model(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 3))


def proxy() -> Tensor:
    return torch.randn(256, 5, generator=torch.Generator().manual_seed(1))


SETTINGS = Distillation(epochs=10)


def states(*models: nn.Module) -> list[Tensor]:
    return [tensor.clone() for model in models for tensor in model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_student_learns_without_labels_and_nothing_else_changes() -> None:
    teacher, student, inputs = model(64, 0).train(), model(8, 1), proxy()
    before, generator = states(teacher, student), torch.random.get_rng_state()
    torch.set_num_threads(2)

    learnt = distill(teacher, student, inputs, SETTINGS, seed=3)

    assert torch.get_num_threads() == 2
    assert same(before, states(teacher, student)) and torch.equal(generator, torch.random.get_rng_state())
    assert teacher.training
    assert all(parameter.grad is None for m in (teacher, student, learnt) for parameter in m.parameters())
    held_out = torch.randn(500, 5, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        answers = teacher.eval()(held_out)
        untaught, taught = (distillation_loss(m.eval()(held_out), answers, temperature=2.0) for m in (student, learnt))
    assert taught < untaught / 4


def test_the_same_seed_gives_the_same_weights_on_any_number_of_threads() -> None:
    teacher, student, inputs = model(64, 0), model(8, 1), proxy()
    found = []
    for threads, seed in ((1, 3), (2, 3), (1, 4)):
        torch.set_num_threads(threads)
        torch.rand(threads)  # torch's generator stands elsewhere each time
        found.append(states(distill(teacher, student, inputs, SETTINGS, seed=seed)))
    assert same(found[0], found[1]) and not same(found[0], found[2])


def test_a_model_distilled_into_itself_stays_what_it_is() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    learnt = distill(teacher, copy.deepcopy(teacher), proxy(), SETTINGS, seed=0)
    # Not exactly: Adam scales even the gradients that are rounding errors.
    torch.testing.assert_close(learnt(proxy()), teacher(proxy()), atol=0.02, rtol=0)


def test_labels_correct_a_teacher_that_is_wrong() -> None:
    inputs = proxy()
    targets = (inputs[:, 0] > 0).long()
    teacher = nn.Linear(5, 3)
    with torch.no_grad():
        teacher.weight.zero_()
    student = model(8, 1)
    learnt = distill(teacher, student, inputs, Distillation(weights=Weights(0.1, 1.0)), targets=targets, seed=0)
    assert (learnt.eval()(inputs).argmax(1) == targets).float().mean() > 0.9


def test_training_modes_are_those_of_the_given_student() -> None:
    student = model(8, 1).eval()
    assert not distill(model(8, 0), student, proxy(), Distillation(epochs=1), seed=0).training


def test_no_proxy_data_is_refused() -> None:
    with pytest.raises(ValueError, match="0 inputs"):
        distill(model(4, 0), model(4, 1), proxy()[:0], seed=0)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"temperature": -1.0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*got.*{next(iter(wrong.values()))}"):
        Distillation(**wrong)
