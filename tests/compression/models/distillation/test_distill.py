"""Distillation is reproducible, touches nothing else, and teaches."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.apps import texts
from torch import Tensor, nn

from fedpress.compression.models.distillation import teachers
from fedpress.compression.models.distillation.distill import distill, few_labels
from fedpress.compression.models.distillation.loss import HIDDEN, distillation_loss
from fedpress.compression.models.distillation.settings import Distillation, LossWeights
from fedpress.compression.models.distillation.teachers import TeacherError
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.task import evaluate
from fedpress.simulations.tasks.digits import Digits


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 3))


def proxy() -> Tensor:
    return torch.randn(256, 5, generator=torch.Generator().manual_seed(1))


SETTINGS = Distillation(epochs=10)
FEW = Distillation(epochs=3)


def states(*models: nn.Module) -> list[Tensor]:
    return [tensor.clone() for model in models for tensor in model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_student_learns_without_labels_and_nothing_else_changes() -> None:
    teacher, student, inputs = model(64, 0).train(), model(8, 1), proxy()
    before, generator = states(teacher, student), torch.random.get_rng_state()
    torch.set_num_threads(2)

    learned = distill(teacher, student, inputs, SETTINGS, seed=3)

    assert torch.get_num_threads() == 2
    assert same(before, states(teacher, student)) and torch.equal(generator, torch.random.get_rng_state())
    assert teacher.training
    assert all(parameter.grad is None for m in (teacher, student, learned) for parameter in m.parameters())
    held_out = torch.randn(500, 5, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        answers = teacher.eval()(held_out)
        untaught, taught = (distillation_loss(m.eval()(held_out), answers, temperature=2.0) for m in (student, learned))
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
    learned = distill(teacher, copy.deepcopy(teacher), proxy(), SETTINGS, seed=0)
    # Not exactly: Adam scales even the gradients that are rounding errors.
    torch.testing.assert_close(learned(proxy()), teacher(proxy()), atol=0.02, rtol=0)


def test_labels_correct_a_teacher_that_is_wrong() -> None:
    inputs = proxy()
    targets = (inputs[:, 0] > 0).long()
    teacher = nn.Linear(5, 3)
    with torch.no_grad():
        teacher.weight.zero_()
    student = model(8, 1)
    learned = distill(teacher, student, inputs, Distillation(weights=LossWeights(0.1, 1.0)), targets=targets, seed=0)
    assert (learned.eval()(inputs).argmax(1) == targets).float().mean() > 0.9


@given(st.integers(1, 60), st.integers(0, 3))
def test_few_labels_are_dealt_out_by_class(count: int, seed: int) -> None:
    targets = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)[torch.randperm(60)]
    found = few_labels(targets, count, torch.Generator().manual_seed(seed))
    shown = found != HIDDEN
    assert int(shown.sum()) == count and torch.equal(found[shown], targets[shown])
    for label, share in enumerate((0.5, 1 / 3, 1 / 6)):
        assert abs(int((found == label).sum()) - share * count) <= 1


def test_batches_without_a_label_that_may_be_seen_teach_nothing_and_do_no_harm() -> None:
    inputs, settings = proxy(), Distillation(epochs=1, batch_size=8, labeled=3, weights=LossWeights(0.0, 1.0))
    targets = (inputs[:, 0] > 0).long()
    learned = distill(model(8, 0), nn.Linear(5, 3), inputs, settings, targets=targets, seed=0)
    assert all(torch.isfinite(parameter).all() for parameter in learned.parameters())
    with pytest.raises(ValueError, match="weights.labels is 1 and all others are 0, but there are no labels"):
        distill(model(8, 0), nn.Linear(5, 3), inputs, settings, seed=0)


def test_more_labels_than_there_are_cannot_be_shown() -> None:
    with pytest.raises(ValueError, match="labeled is 257, but there are labels of 256"):
        targets = torch.zeros(256, dtype=torch.int64)
        distill(model(8, 0), model(8, 1), proxy(), Distillation(labeled=257), targets=targets, seed=3)


def test_a_teacher_may_see_another_view_of_the_same_examples() -> None:
    inputs = proxy()
    other = 3 * inputs[:, 1:]
    torch.manual_seed(0)
    teacher = nn.Linear(4, 3)
    settings = Distillation(epochs=15, learning_rate=0.03)
    learned = distill(teacher, nn.Linear(5, 3), inputs, settings, teacher_inputs=other, seed=0)
    with torch.no_grad():
        agree = (learned(inputs).argmax(1) == teacher(other).argmax(1)).float().mean()
    assert agree > 0.9
    with pytest.raises(ValueError, match="got 255 teacher_inputs for 256 inputs"):
        distill(teacher, model(8, 1), inputs, teacher_inputs=other[1:], seed=0)
    with pytest.raises(ValueError, match="got 1 targets for 256 inputs"):
        distill(model(8, 0), model(8, 1), inputs, targets=torch.tensor([1]), seed=0)


def test_teacher_and_student_must_answer_alike() -> None:
    with pytest.raises(TeacherError, match=r"with \(4,\) logits, the student with \(3,\)"):
        distill(nn.Linear(5, 4), model(8, 0), proxy(), seed=0)


@pytest.fixture(scope="module")
def digits_teacher() -> nn.Module:
    """Trained for a moment; students learn its answers, whatever they are worth."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    task = Digits()
    trained, examples = task.model(), task.data().train
    optimizer = torch.optim.SGD(trained.parameters(), 0.1)
    for _ in range(6):
        for batch in torch.randperm(len(examples.targets)).split(20):
            optimizer.zero_grad()
            task.loss(trained(examples.inputs[batch]), examples.targets[batch]).backward()
            optimizer.step()
    return trained


TECHNIQUES = {
    "features": Distillation(weights=LossWeights(features=0.1)),
    "transfer": Distillation(weights=LossWeights(attention_transfer=10.0)),
    "exits": Distillation(weights=LossWeights(early_exits=0.3)),
    "past": Distillation(weights=LossWeights(mean_teacher=1.0), noise=0.05),
    "reweight": Distillation(balance="reweight"),
    "resample": Distillation(balance="resample"),
    "labels": Distillation(labeled=100),
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_each_technique_teaches_on_real_data_and_is_reproducible(name: str, digits_teacher: nn.Module) -> None:
    task = Digits()
    proxy = task.data().proxy
    start = structural.prune_to(digits_teacher, proxy.inputs[:1], 4_000)
    before = states(digits_teacher, start)
    targets = proxy.targets if name == "labels" else None

    settings = replace(TECHNIQUES[name], epochs=12)
    learned = distill(digits_teacher, start, proxy.inputs, settings, targets=targets, seed=1)

    assert same(before, states(digits_teacher, start))
    untaught, taught = (evaluate(m, task, task.data().test).accuracy for m in (start, learned))
    assert taught > max(untaught, 0.85)
    short = replace(TECHNIQUES[name], epochs=1)
    pair = [distill(digits_teacher, start, proxy.inputs, short, targets=targets, seed=1) for _ in range(2)]
    plain = distill(digits_teacher, start, proxy.inputs, Distillation(epochs=1), seed=1)
    assert same(states(pair[0]), states(pair[1])) and not same(states(pair[0]), states(plain))
    assert [n for n, _ in learned.named_parameters()] == [n for n, _ in start.named_parameters()]


@pytest.mark.parametrize("name", ["features", "transfer", "past"])
def test_a_model_distilled_into_itself_stays_what_it_is_with_each_loss(name: str, digits_teacher: nn.Module) -> None:
    inputs = Digits().data().proxy.inputs
    settings = replace(TECHNIQUES[name], epochs=4, noise=0.0, learning_rate=1e-3)
    learned = distill(digits_teacher, digits_teacher, inputs, settings, seed=0)
    one, other = (teachers.logits(m, inputs).softmax(1) for m in (learned, digits_teacher))
    # Not exactly: Adam scales even the gradients that are rounding errors, and projections begin anywhere.
    assert (one - other).abs().mean() < 0.01
    assert (one.argmax(1) == other.argmax(1)).float().mean() > 0.98


def test_the_past_is_the_mean_of_the_students_weights() -> None:
    """At a decay near 1 it starts as the plain mean of all steps, as in the paper's code."""
    start, inputs = nn.Linear(5, 3), proxy()[:32]
    settings = Distillation(epochs=1, batch_size=16, weights=LossWeights(mean_teacher=1e-9), decay=0.999999)
    one = Distillation(epochs=1, batch_size=16)
    learned = distill(model(8, 0), start, inputs, settings, seed=0)
    last = distill(model(8, 0), start, inputs, one, seed=0)
    with torch.no_grad():
        moved, mean = last.weight - start.weight, learned.weight - start.weight
    assert 0 < mean.norm() < moved.norm()


def test_balance_brings_back_a_rare_class() -> None:
    """Two classes that overlap, one of them a tenth as common: without balance the student gives the rare one up."""
    draw = torch.Generator().manual_seed(0)
    common, rare = torch.randn(400, 5, generator=draw), torch.randn(40, 5, generator=draw) + 0.8
    inputs = torch.cat([common, rare])
    targets = torch.cat([torch.zeros(400, dtype=torch.int64), torch.ones(40, dtype=torch.int64)])
    labels = LossWeights(teacher=0.0, labels=1.0)
    found = {}
    for name in ("none", "reweight", "resample"):
        settings = Distillation(epochs=6, weights=labels, balance=name)
        learned = distill(nn.Linear(5, 2), nn.Linear(5, 2), inputs, settings, targets=targets, seed=0)
        found[name] = float((learned(rare).argmax(1) == 1).float().mean())
    assert min(found["reweight"], found["resample"]) > found["none"] + 0.3


def test_noise_on_what_takes_none_is_refused() -> None:
    text = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="noise is 0.1, but inputs int64 .* take none"):
        distill(text, text, torch.zeros(4, 2, dtype=torch.int64), Distillation(noise=0.1), seed=0)


def test_training_modes_are_those_of_the_given_student() -> None:
    student = model(8, 1).eval()
    assert not distill(model(8, 0), student, proxy(), Distillation(epochs=1), seed=0).training


def test_no_proxy_data_is_refused() -> None:
    with pytest.raises(ValueError, match="0 inputs"):
        distill(model(4, 0), model(4, 1), proxy()[:0], seed=0)


INPUTS = torch.randn(64, 5, generator=torch.Generator().manual_seed(1))


TARGETS = torch.arange(64) % 3


def test_few_labels_are_chosen_among_those_that_there_are() -> None:
    targets = torch.tensor([0, HIDDEN, 1, HIDDEN, 1, HIDDEN, 0, HIDDEN])
    found = few_labels(targets, 4, torch.Generator().manual_seed(0))
    assert torch.equal(found, targets)
    with pytest.raises(ValueError, match="labeled is 5, but there are labels of 4 examples only"):
        few_labels(targets, 5, torch.Generator().manual_seed(0))


class Places(nn.Module):
    """Answers each of `length` places of an input (N, 5) with logits, (N, length, 3)."""

    def __init__(self, length: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(5, 3 * length)
        self.length = length

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear(inputs).unflatten(1, (self.length, 3))
        return logits


class Flat(Places):
    """The same without the axis of places."""

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear(inputs)
        return logits


@pytest.mark.parametrize("labels", [False, True])
def test_sequences_of_one_place_are_the_plain_case(labels: bool) -> None:
    targets = TARGETS if labels else None
    plain = distill(Flat(1, 0), Flat(1, 1), INPUTS, FEW, targets=targets, seed=0)
    places = None if targets is None else targets[:, None]
    found = distill(Places(1, 0), Places(1, 1), INPUTS, FEW, targets=places, seed=0)
    torch.testing.assert_close(list(found.parameters()), list(plain.parameters()))


def test_what_is_for_one_label_an_example_is_refused() -> None:
    for settings in (Distillation(weights=LossWeights(early_exits=1.0)), Distillation(balance="reweight")):
        with pytest.raises(ValueError, match="the answers are sequences: both are for one label an example"):
            distill(Places(2, 0), Places(2, 1), INPUTS, settings, seed=0)


class FivePlaces(nn.Module):
    """Logits of three classes at each of five places, last or second."""

    def __init__(self, width: int, class_axis: int) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.class_axis = class_axis
        self.layers = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x[..., None]).movedim(-1, self.class_axis)  # type: ignore[no-any-return]


SEQUENCES = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("labels", [False, True])
def test_classes_may_be_second_or_last(labels: bool) -> None:
    """The same weights are learned; along the wrong axis, places would compete in place of classes."""
    targets = torch.randint(3, (20, 5), generator=torch.Generator().manual_seed(0)) if labels else None
    chosen = Distillation(epochs=2, batch_size=6, weights=LossWeights(mean_teacher=0.1, labels=float(labels)))

    def learned(axis: int, told: int) -> torch.Tensor:
        student = distill(
            FivePlaces(8, axis), FivePlaces(2, axis), SEQUENCES, chosen, targets=targets, class_axis=told, seed=1
        )
        return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])

    torch.testing.assert_close(learned(1, 1), learned(-1, -1))
    if not labels:
        assert not torch.allclose(learned(1, -1), learned(-1, -1), rtol=1e-3)


def test_a_model_of_several_outputs_is_refused_also_where_it_has_them_in_training_only() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> Any:
            answer = self.layer(x)
            return (answer, answer) if self.training else answer

    with pytest.raises(TeacherError, match="returns a tuple: distillation takes the logits of one tensor"):
        distill(nn.Linear(5, 3), Early(), SEQUENCES, Distillation(epochs=1), seed=0)


@pytest.mark.parametrize("kind", ["plain", "places"])
def test_students_learn_on_inputs_by_name_and_on_stored_ones(kind: str) -> None:
    """Stored ones are padded batch by batch: the same student, up to rounding, as of one length."""
    torch.manual_seed(0)
    task = texts.Texts(kind)
    teacher, student = task.model(), task.model()
    stored, whole = (texts.Texts(kind, source).data().proxy.inputs for source in ("lists", "memory"))
    settings = Distillation(epochs=2, batch_size=16)
    axis = 1
    first, second = (distill(teacher, student, part, settings, class_axis=axis, seed=3) for part in (stored, whole))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    before = distillation_loss(*(teachers.logits(each, whole, axis) for each in (student, teacher)), temperature=2.0)
    after = distillation_loss(*(teachers.logits(each, whole, axis) for each in (first, teacher)), temperature=2.0)
    assert after < before
