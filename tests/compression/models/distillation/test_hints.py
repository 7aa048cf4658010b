"""The inside of a teacher: likeness costs nothing, differences are learned, and what cannot be compared is said."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models.distillation import stages, teachers
from fedpress.compression.models.distillation.distill import distill
from fedpress.compression.models.distillation.hints import Hints, activity, attention_divergence
from fedpress.compression.models.distillation.settings import Distillation, LossWeights
from fedpress.compression.models.distillation.teachers import TeacherError
from fedpress.simulations.tasks.digits import Digits


def images(count: int = 96) -> Tensor:
    return Digits().data().proxy.inputs[:count]


def small(width: int, seed: int = 0, stride: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2 * width), nn.ReLU(),
        nn.Linear(2 * width, 10),
    )  # fmt: skip


def made(width: int, seed: int = 0, stride: int = 1) -> nn.Module:
    model = small(width, seed, stride)
    model(images(2))
    return model


def loss(student: nn.Module, teacher: nn.Module, weights: LossWeights, inputs: Tensor) -> Tensor:
    hints = Hints(student, teacher, inputs[:2], inputs[:2], weights)
    for projection in hints.projections:
        nn.init.dirac_(projection.weight) if projection.weight.ndim == 4 else nn.init.eye_(projection.weight)
        nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
    with stages.recording(student) as own, stages.recording(teacher) as theirs:
        student(inputs), teacher(inputs)
        return hints(own, theirs).detach()


@pytest.mark.parametrize("weights", [LossWeights(features=1.0), LossWeights(attention_transfer=1.0)])
def test_a_model_has_no_loss_to_itself(weights: LossWeights) -> None:
    model = made(4)
    assert float(loss(model, copy.deepcopy(model), weights, images())) == 0.0
    assert float(loss(made(4, seed=1), model, weights, images())) > 0.01


@given(st.floats(0.1, 10.0))
def test_attention_is_where_activations_are_large_not_how_large(scale: float) -> None:
    maps = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(activity(maps), activity(scale * maps))
    torch.testing.assert_close(activity(maps).norm(dim=1), torch.ones(3))


def test_weights_scale_their_losses() -> None:
    student, teacher = made(4, 1), made(4)
    features, transfer = LossWeights(features=1.0), LossWeights(attention_transfer=1.0)
    both = loss(student, teacher, LossWeights(features=2.0, attention_transfer=3.0), images())
    expected = 2 * loss(student, teacher, features, images()) + 3 * loss(student, teacher, transfer, images())
    torch.testing.assert_close(both, expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_student_learns_the_inside_also_at_another_resolution(stride: int) -> None:
    teacher, student = made(12), made(4, 1, stride)
    inputs, weights = images(), LossWeights(attention_transfer=1.0)
    settings = Distillation(epochs=20, weights=LossWeights(teacher=0.0, features=1.0, attention_transfer=1.0))
    learned = distill(teacher, student, inputs, settings, seed=0)
    assert float(loss(learned, teacher, weights, inputs)) < 0.5 * float(loss(student, teacher, weights, inputs))
    assert {name: t.shape for name, t in learned.state_dict().items()} == {
        name: t.shape for name, t in student.state_dict().items()
    }  # the projections are gone


class Attention(nn.Module):
    """Self-attention of some heads that can tell its distributions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.queries_keys, self.values = heads, nn.Linear(width, 2 * width), nn.Linear(width, width)

    def maps(self, x: Tensor) -> Tensor:
        query, key = (part.unflatten(-1, (self.heads, -1)) for part in self.queries_keys(x).chunk(2, dim=-1))
        scores = torch.einsum("nqhd,nkhd->nhqk", query, key) / query.shape[-1] ** 0.5
        return scores.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        values = self.values(x).unflatten(-1, (self.heads, -1))
        return x + torch.einsum("nhqk,nkhd->nqhd", self.maps(x), values).flatten(2)


class Rows(nn.Module):
    """A transformer on the eight rows of a digit."""

    def __init__(self, width: int, heads: int, depth: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(8, width)
        self.blocks = nn.Sequential(*(Attention(width, heads) for _ in range(depth)))
        self.answer = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.blocks(self.embed(x[:, 0])).mean(1))


def test_a_student_learns_attention_of_a_deeper_teacher_with_more_heads() -> None:
    teacher, student, inputs = Rows(16, 4, 4, seed=0), Rows(8, 2, 2, seed=1), images()
    with torch.no_grad():  # sharper than an untrained one's
        for block in teacher.blocks:
            block.queries_keys.weight *= 4  # type: ignore[union-attr,operator]
    settings = Distillation(epochs=20, weights=LossWeights(teacher=0.0, attention=1.0))
    learned = distill(teacher, student, inputs, settings, seed=0)
    weights = LossWeights(attention=1.0)
    assert float(loss(learned, teacher, weights, inputs)) < 0.7 * float(loss(student, teacher, weights, inputs))


def test_the_divergence_of_attention_is_that_of_distributions() -> None:
    student, teacher = (torch.randn(2, 3, 4, 4).softmax(-1) for _ in range(2))
    expected = nn.functional.kl_div(student.log(), teacher, reduction="sum") / (2 * 3 * 4)
    torch.testing.assert_close(attention_divergence(student, teacher), expected)
    assert float(attention_divergence(teacher, teacher)) == pytest.approx(0.0, abs=1e-7)
    assert torch.isfinite(attention_divergence(torch.eye(4).expand(2, 3, 4, 4), teacher))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (LossWeights(features=1.0), "weights.features is 1, .* a stage of the same kind"),
        (LossWeights(attention_transfer=1.0), r"weights.attention_transfer is 1, .* maps \(N, C, H, W\)"),
        (LossWeights(attention=1.0), "weights.attention is 1, .* method `maps`"),
    ],
)
def test_models_with_nothing_in_common_are_told(weights: LossWeights, message: str) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(TeacherError, match=message):
        distill(made(4), linear, images(), Distillation(epochs=1, weights=weights), seed=0)


def test_an_ensemble_has_no_inside() -> None:
    ensemble = teachers.Ensemble(lambda: [made(4)])
    with pytest.raises(TeacherError, match="need the activations of one model, but the teacher is Ensemble"):
        distill(ensemble, made(2), images(), Distillation(epochs=1, weights=LossWeights(features=1.0)), seed=0)
