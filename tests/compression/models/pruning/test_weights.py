"""Masks have the density asked for, never grow back, and whatever trains within one stays in it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models import masks
from fedpress.compression.models.pruning import importance, weights
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.pruning.settings import Tracing


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 20), nn.ReLU(), nn.Linear(20, 4)
    )


INPUTS = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def felt(network: nn.Module) -> dict[str, Tensor]:
    return {name: torch.rand(parameter.shape) for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("ranking", importance.RANKINGS)
def test_ignored_layers_stay_dense(ranking: str) -> None:
    network, criterion = model(), Criterion(ranking=ranking, tracing=Tracing(ignored=("0", "6")))
    assert weights.prunable(network, criterion) == ["4.weight"]
    found = weights.by_importance(network, 0.25, criterion)
    assert found["0.weight"].all() and found["6.weight"].all()
    assert int(found["4.weight"].sum()) == 288 * 20 // 4
    assert list(found) == list(weights.dense(network))
    halved = weights.semi_structured(network, criterion)
    assert halved["0.weight"].all() and int(halved["4.weight"].sum()) == 288 * 20 // 2


@settings(max_examples=40, deadline=None)
@given(
    first=st.floats(0.01, 1.0),
    second=st.floats(0.01, 1.0),
    name=st.sampled_from(importance.IMPORTANCES),
    ranking=st.sampled_from(importance.RANKINGS),
    seed=st.integers(0, 3),
)
def test_a_mask_has_its_density_and_never_grows_back(
    first: float, second: float, name: str, ranking: str, seed: int
) -> None:
    network = model(seed)
    criterion = Criterion(name, ranking, felt(network), seed, norms=importance.norms(network, INPUTS))
    before = weights.by_importance(network, first, criterion)
    assert weights.density(before) == pytest.approx(first, abs=3 / 6008)
    assert all(bool(mask.any()) for mask in before.values())

    masks.apply(network, before)
    with torch.no_grad():  # trained on, with new gradients
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape))
    criterion = criterion._replace(
        gradients=felt(network), seed=seed + 1, norms=importance.norms(network, INPUTS.flip(0) ** 2)
    )
    after = weights.by_importance(network, second, criterion, within=before)

    assert all(not bool((after[key] & ~before[key]).any()) for key in before)
    assert weights.density(after) <= min(first, second) + 3 / 6008


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4), min_size=1, max_size=6),
    density=st.floats(0.01, 1.0),
)
def test_erk_meets_the_density_and_favors_small_layers(shapes: list[list[int]], density: float) -> None:
    named = {str(index): tuple(shape) for index, shape in enumerate(shapes)}
    sizes = {name: math.prod(shape) for name, shape in named.items()}
    found = weights.erk(named, density)
    assert all(0 <= value <= 1 + 1e-9 for value in found.values())
    assert sum(found[name] * sizes[name] for name in named) == pytest.approx(density * sum(sizes.values()))
    for one in named:
        for other in named:
            if sum(named[one]) / sizes[one] >= sum(named[other]) / sizes[other]:
                assert found[one] >= found[other] - 1e-9


def test_lamp_is_magnitude_within_a_layer_and_spares_narrow_layers_across() -> None:
    network = model()
    uniform = weights.by_importance(network, 0.1, Criterion("lamp"))
    magnitude = weights.by_importance(network, 0.1, Criterion("l1"))
    assert all(torch.equal(uniform[name], magnitude[name]) for name in uniform)
    across = weights.densities(weights.by_importance(network, 0.1, Criterion("lamp", "global")))
    assert across["6.weight"] > 3 * across["4.weight"]


@pytest.mark.parametrize("columns", [8, 9, 10, 11])
def test_two_of_every_four_neighbors_are_kept(columns: int) -> None:
    layer = nn.Linear(columns, 6)
    mask = weights.semi_structured(layer)["weight"]
    assert weights.is_semi_structured(mask) and not weights.is_semi_structured(torch.ones(6, 4, dtype=torch.bool))
    whole = layer.weight.detach().abs()[:, :8].reshape(6, 2, 4)
    kept = mask[:, :8].reshape(6, 2, 4)
    assert (kept.sum(2) == 2).all()
    assert (whole.masked_fill(~kept, 9).amin(2) >= whole.masked_fill(kept, 0).amax(2)).all()
    assert (mask[:, 8:].sum(1) == min(2, columns - 8)).all()
    assert weights.is_semi_structured(weights.semi_structured(nn.Conv2d(3, 4, 5))["weight"])


def test_a_mask_within_one_of_another_model_is_refused() -> None:
    with pytest.raises(masks.MaskError, match="expected"):
        weights.by_importance(model(), 0.5, within={})


@pytest.mark.parametrize("density", [0.0, 1.1])
def test_a_density_that_is_none_is_refused(density: float) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        weights.by_importance(model(), density)


class Transposed(nn.Module):
    """y = x W with W (inputs, outputs), as GPT-2 stores its layers."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.T.contiguous())

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


@settings(max_examples=20, deadline=None)
@given(density=st.floats(0.05, 1.0), seed=st.integers(0, 99))
def test_wanda_compares_within_each_output_whatever_the_layout(density: float, seed: int) -> None:
    torch.manual_seed(seed)
    weight, inputs = torch.randn(6, 10), torch.randn(40, 10) * torch.rand(10)
    linear = nn.Linear(10, 6, bias=False)
    linear.weight.data.copy_(weight)
    found = []
    for layer in (linear, Transposed(weight)):
        criterion = Criterion("wanda", norms=importance.norms(layer, inputs))
        found.append(weights.by_importance(layer, density, criterion)["weight"])
        found.append(weights.semi_structured(layer, criterion)["weight"])
    assert torch.equal(found[0], found[2].T) and torch.equal(found[1], found[3].T)
    rows = found[0].sum(1)
    assert int(rows.sum()) == max(1, round(60 * density)) and int(rows.max() - rows.min()) <= 1
    scores = weight.abs() * inputs.square().mean(0).sqrt()
    for score, kept in zip(scores, found[0], strict=True):
        assert not kept.any() or kept.all() or score[kept].min() >= score[~kept].max()
    assert weights.is_semi_structured(found[1])
