"""Importance by the definitions of the papers, worked out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpress.compression.models.calibration import Site
from fedpress.compression.models.pruning import channel_groups, importance
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.task import Examples, Splits, Task


class Rows(Task):
    """Three numbers, and the class by their sum."""

    name = "rows"

    def model(self) -> nn.Module:
        return nn.Linear(3, 2)

    def data(self) -> Splits:
        raise NotImplementedError


def rows(count: int) -> Examples:
    inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return Examples(inputs, (inputs.sum(1) > 0).long())


def test_gradients_are_the_mean_of_the_magnitudes_over_batches() -> None:
    torch.manual_seed(0)
    model, examples = Rows().model().train(), rows(10)
    found = importance.gradients(model, Rows(), examples, batch_size=4)
    expected = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for start in (0, 4, 8):
        loss = Rows().loss(model(examples.inputs[start : start + 4]), examples.targets[start : start + 4])
        for name, slope in zip(expected, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            expected[name] += slope.abs() / 3
    for name, slope in expected.items():
        torch.testing.assert_close(found[name], slope)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


WEIGHTS = {"a": torch.tensor([[1.0, -2.0], [0.5, 3.0]]), "b": torch.tensor([[-4.0]])}


def test_single_weights_are_ranked_as_the_papers_say() -> None:
    slopes = {name: torch.full_like(weight, 0.5) for name, weight in WEIGHTS.items()}
    slopes["a"][0, 0] = 10
    norms = {"a": [(Site("a", (1, 2, 2), (0, 2, 1), 0), torch.tensor([[10.0, 3.0]]))]}
    of = {
        name: importance.of_weights(WEIGHTS, Criterion(name, gradients=slopes, norms=norms))
        for name in importance.IMPORTANCES
    }
    for name, weight in WEIGHTS.items():
        assert torch.equal(of["l1"][name], weight.abs()) and torch.equal(of["l2"][name], weight.square())
        assert torch.equal(of["taylor"][name], (weight * slopes[name]).abs())
    assert of["wanda"]["a"].tolist() == [[10, 6], [5, 9]] and of["wanda"]["b"].tolist() == [[4]]
    total = [0.25, 1.0, 4.0, 9.0]
    expected = [square / sum(total[place:]) for place, square in enumerate(total)]
    torch.testing.assert_close(of["lamp"]["a"], torch.tensor([[expected[1], expected[2]], [expected[0], expected[3]]]))
    assert of["lamp"]["b"].item() == 1


@given(st.integers(0, 99))
def test_chance_is_the_same_for_the_same_seed(seed: int) -> None:
    generator = torch.random.get_rng_state()
    draws = [importance.of_weights(WEIGHTS, Criterion("random", seed=each))["a"] for each in (seed, seed, seed + 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(generator, torch.random.get_rng_state())


def test_a_layer_of_zeros_has_no_lamp_score() -> None:
    assert not importance.of_weights({"a": torch.zeros(2, 3)}, Criterion("lamp"))["a"].any()


def test_a_channel_counts_with_all_that_hangs_on_it() -> None:
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
        model[2].weight.copy_(torch.tensor([[4.0, 1.0, 2.0]]))
    groups = channel_groups.find(model, torch.zeros(1, 2))
    (scores,) = importance.of_units(model, groups, Criterion("l2"))
    torch.testing.assert_close(scores, torch.tensor([25.0, 3.0, 4.0]) * 3 / 32)  # squares of both layers, mean 1


def test_no_examples_have_no_gradient() -> None:
    with pytest.raises(ValueError, match="0 examples"):
        importance.gradients(Rows().model(), Rows(), rows(0))


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (Criterion("size"), "importance must be one of l1, l2, .*, got 'size'"),
        (Criterion(ranking="local"), "ranking must be one of uniform, global, erk, got 'local'"),
        (Criterion("taylor"), "needs gradients"),
    ],
)
def test_a_criterion_that_does_not_exist_is_refused(criterion: Criterion, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        criterion.check()


def test_norms_are_those_of_each_layers_inputs_and_scale_a_channels_importance() -> None:
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).train()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        model[2].weight.fill_(1.0)
    inputs = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    norms = importance.norms(model, inputs)
    root = 12.5**0.5
    torch.testing.assert_close(norms["0.weight"][0][1], torch.tensor([[root, 0.0]]))
    torch.testing.assert_close(norms["2.weight"][0][1], torch.tensor([[root, 0.0, root]]))
    (scores,) = importance.of_units(model, channel_groups.find(model, inputs[:1]), Criterion("wanda", norms=norms))
    torch.testing.assert_close(scores, torch.tensor([2.0, 0.0, 2.0]) * 3 / 4)  # the second answers nothing to these
    assert model.training
    with pytest.raises(ValueError, match=r"importance\.norms"):
        importance.of_weights(WEIGHTS, Criterion("wanda"))
