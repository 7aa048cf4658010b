"""The inside of a teacher: likeness costs nothing, differences are learned, and what cannot be compared is said."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models.distillation import stages, teachers
from fedpress.compression.models.distillation.distill import distill
from fedpress.compression.models.distillation.hints import Hints, activity, attention_divergence
from fedpress.compression.models.distillation.settings import Distillation, Divergence, LossWeights
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
    recording = partial(stages.recording, attention=True)
    with recording(student) as own, recording(teacher) as theirs:
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
        (LossWeights(attention=1.0), "weights.attention is 1, .* attention of as many queries and keys"),
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


# ---- transformers ------------------------------------------------------------------------------------------------


class Fused(nn.Module):
    """Attention by torch's fused function, with shared keys and a mask of places, as large models have it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value = (
            nn.Linear(width, width),
            nn.Linear(width, self.size),
            nn.Linear(width, self.size),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (self.heads, self.size)).transpose(1, 2)
        key, value = (part(x).unsqueeze(1) for part in (self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask[:, None, None, :], enable_gqa=True
        )
        return x + mixed.transpose(1, 2).flatten(2)


class Whole(nn.Module):
    """Attention by torch's layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.attention(x, x, x, key_padding_mask=~mask, need_weights=False)[0]


class Words(nn.Module):
    """A transformer of ids and a mask."""

    def __init__(self, block: Callable[[int, int], nn.Module], width: int, heads: int, depth: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(20, width)
        self.layers = nn.ModuleList(block(width, heads) for _ in range(depth))
        self.answer = nn.Linear(width, 5)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = 3 * self.words(ids)
        for layer in self.layers:
            x = layer(x, attention_mask.bool())
        present = attention_mask.unsqueeze(-1)
        return self.answer((x * present).sum(1) / present.sum(1))


def sentences(count: int = 40, padding: int = 3, value: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(1, 20, (count, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[::2, 9 - padding :], mask[::2, 9 - padding :] = value, 0
    return {"ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("block", [Fused, Whole])
@pytest.mark.parametrize("weights", [LossWeights(teacher=0.0, attention=1.0), LossWeights(teacher=0.0, features=1.0)])
def test_a_student_of_half_the_layers_learns_its_teacher_s_inside(block: type[nn.Module], weights: LossWeights) -> None:
    teacher, student, batch = Words(block, 16, 4, 4, seed=0), Words(block, 8, 2, 2, seed=1), sentences()
    learned = distill(teacher, student, batch, Distillation(epochs=25, batch_size=10, weights=weights), seed=0)

    def distance(model: nn.Module) -> float:
        hints = Hints(model, teacher, batch, batch, LossWeights(attention=1.0))
        with stages.recording(model, attention=True) as own, stages.recording(teacher, attention=True) as theirs:
            model(**batch), teacher(**batch)
            return float(hints(own, theirs, batch["attention_mask"].bool()).detach())

    if weights.attention:
        assert distance(learned) < 0.7 * distance(student)
    pairs = Hints(student, teacher, batch, batch, LossWeights(features=1.0)).projections
    assert [(p.in_features, p.out_features) for p in pairs] == [(8, 16)] * 2
    assert any(
        not torch.equal(one, other) for one, other in zip(learned.parameters(), student.parameters(), strict=True)
    )


@pytest.mark.parametrize("weights", [LossWeights(attention=1.0), LossWeights(features=1.0)])
def test_padding_does_not_count(weights: LossWeights) -> None:
    """What stands in places of padding changes neither loss, and more of it does not either."""
    teacher, student = Words(Fused, 8, 2, 2, seed=0), Words(Fused, 8, 2, 2, seed=1)

    def value(batch: dict[str, Tensor]) -> float:
        hints = Hints(student, teacher, batch, batch, weights)
        for projection in hints.projections:
            nn.init.eye_(projection.weight)
            nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
        with stages.recording(student, attention=True) as own, stages.recording(teacher, attention=True) as theirs:
            student(**batch), teacher(**batch)
            return float(hints(own, theirs, batch["attention_mask"].bool()).detach())

    expected = value(sentences(value=0))
    assert value(sentences(value=7)) == pytest.approx(expected, rel=1e-5) and expected > 0.001
    longer = {name: torch.cat([part, torch.zeros_like(part[:, :4])], dim=1) for name, part in sentences().items()}
    assert value(longer) == pytest.approx(expected, rel=1e-5)


def test_layers_are_paired_at_equal_depth() -> None:
    batch = sentences(4)
    few, many = Words(Fused, 8, 2, 2, seed=1), Words(Fused, 16, 4, 6, seed=0)
    of_few, of_many = stages.stages(few, batch), stages.stages(many, batch)
    assert [stage.axes for stage in of_few] == [3] * 2 and [stage.axes for stage in of_many] == [3] * 6
    pairs = [(of_few.index(a), of_many.index(b)) for a, b in stages.matched(of_few, of_many)]
    assert pairs == [(0, 2), (1, 5)]


@pytest.mark.parametrize("masked", [None, torch.ones(2, 1, 1, 7, dtype=torch.bool), torch.zeros(7, 7)])
@pytest.mark.parametrize("causal", [False, True])
def test_what_is_recorded_is_what_values_are_mixed_by(masked: Tensor | None, causal: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 7, 4, generator=draw) for heads in (4, 2, 2))
    if masked is not None and causal:
        return  # torch takes one of the two
    settings = {"attn_mask": masked, "is_causal": causal, "enable_gqa": True, "scale": 0.7}
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, **settings)  # type: ignore[arg-type]
    maps = stages.attention_maps(query, key, value, **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(maps @ value.repeat_interleave(2, dim=1), mixed)


@pytest.mark.parametrize("divergence", ["mse", "cosine"])
def test_embeddings_are_learned_by_their_distance(divergence: Divergence) -> None:
    teacher, student, batch = Words(Fused, 16, 4, 2, seed=0), Words(Fused, 16, 4, 1, seed=1), sentences()
    settings = Distillation(epochs=20, batch_size=10, divergence=divergence)
    learned = distill(teacher, student, batch, settings, seed=0)

    def turned(model: nn.Module) -> float:
        return 1 - float(nn.functional.cosine_similarity(model(**batch), teacher(**batch)).mean().detach())

    assert turned(learned) < 0.7 * turned(student)


@pytest.mark.parametrize("block", [Fused, Whole])
def test_recording_changes_no_pass(block: type[nn.Module]) -> None:
    model, batch = Words(block, 8, 2, 2, seed=0).train(), sentences(4)
    for layer in model.layers:
        if isinstance(layer, Whole):
            layer.attention.dropout = 0.5
    torch.manual_seed(3)
    expected = model(**batch)
    torch.manual_seed(3)
    with stages.recording(model, attention=True) as record:
        assert torch.equal(model(**batch), expected)
    present = batch["attention_mask"].bool()
    assert [maps.shape for maps in record.maps] == [(4, 2, 9, 9)] * 2
    for maps in record.maps:  # distributions, without dropout, of which padding has nothing
        torch.testing.assert_close(maps.sum(-1), torch.ones(4, 2, 9))
        assert float((maps * ~present[:, None, None, :]).abs().max().detach()) == 0.0
