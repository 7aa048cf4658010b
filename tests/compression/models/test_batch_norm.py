"""Running statistics of given weights."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fedpress.compression.models import batch_norm


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.9), nn.Flatten(), nn.Linear(16, 3),
        nn.BatchNorm1d(3), nn.LayerNorm(3),
    )  # fmt: skip
    layers[1].running_mean.fill_(7)
    layers[1].num_batches_tracked.fill_(41)
    return layers


def inputs(count: int) -> Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(1)) + 3


def test_statistics_are_those_of_the_weights_and_nothing_is_dropped() -> None:
    layers, images = model(), inputs(100)
    measured = batch_norm.measure(layers, images)
    convolved = layers[0](images)
    normalized = (convolved - convolved.mean((0, 2, 3), keepdim=True)) / torch.sqrt(
        convolved.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5
    )
    scores = layers[5](torch.relu(normalized).flatten(1))
    expected = {
        "1.running_mean": convolved.mean((0, 2, 3)),
        "1.running_var": convolved.var((0, 2, 3)),
        "6.running_mean": scores.mean(0),
        "6.running_var": scores.var(0),
    }
    assert sorted(measured) == sorted(expected)
    for name, value in expected.items():
        torch.testing.assert_close(torch.from_numpy(measured[name]), value.detach())


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_before(training: bool) -> None:
    layers = model().train(training)
    layers[3].eval()
    before = copy.deepcopy(layers.state_dict())
    batch_norm.measure(layers, inputs(10))
    assert all(torch.equal(value, before[name]) for name, value in layers.state_dict().items())
    assert [layer.training for layer in layers] == [training] * 3 + [False] + [training] * 4
    assert layers[1].momentum == 0.1


def test_the_model_is_as_before_when_it_fails() -> None:
    layers = model()
    before = copy.deepcopy(layers.state_dict())
    with pytest.raises(RuntimeError):
        batch_norm.measure(layers, inputs(10)[:, :1])
    assert all(torch.equal(value, before[name]) for name, value in layers.state_dict().items())
    assert layers[1].momentum == 0.1


@pytest.mark.parametrize("count", [2, 3, 255, 256, 257, 513])
def test_no_batch_is_of_one_input(count: int) -> None:
    norm = nn.Sequential(nn.BatchNorm1d(1))
    values = torch.linspace(0, 1, count)[:, None]
    measured = batch_norm.measure(norm, values)
    assert measured["0.running_mean"] == pytest.approx([0.5], abs=1e-3)


def test_at_most_so_many_inputs_are_taken_from_the_whole_range() -> None:
    """Examples are often sorted by their labels."""
    seen = []

    class Seen(nn.BatchNorm1d):
        def forward(self, values: Tensor) -> Tensor:
            seen.append(len(values))
            return super().forward(values)

    measured = batch_norm.measure(nn.Sequential(Seen(1)), torch.linspace(0, 1, 9000)[:, None], most=600)
    assert sum(seen) == 600 and max(seen) <= 300
    assert measured["0.running_mean"] == pytest.approx([0.5], abs=1e-3)


def test_frozen_layers_and_those_without_statistics_are_left_out() -> None:
    class Frozen(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> "Frozen":
            return super().train(False)

    layers = nn.Sequential(Frozen(3), nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))
    assert batch_norm.measure(layers, torch.randn(8, 3)) == {}
    part = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    part[0].requires_grad_(False)
    part[0].running_mean.fill_(5.0)
    measured = batch_norm.measure(part, torch.ones(8, 3))
    assert measured.keys() == {"1.running_mean", "1.running_var"}
    assert measured["1.running_mean"] == pytest.approx([-4.0] * 3, abs=1e-3)  # behind what the first one makes of it
    assert batch_norm.measure(nn.Sequential(nn.BatchNorm1d(3)), torch.randn(1, 3)) == {}


def test_bfloat16_comes_as_patterns() -> None:
    measured = batch_norm.measure(nn.Sequential(nn.BatchNorm1d(1)).bfloat16(), torch.tensor([[1.0], [3.0]]).bfloat16())
    assert measured["0.running_mean"].dtype == "uint16"
    assert torch.from_numpy(measured["0.running_mean"]).view(torch.bfloat16).item() == 2
