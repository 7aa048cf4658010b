"""What a forward pass costs: known sums for small models, growth with width, and rates found again from latencies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models import cost
from fedpress.compression.models.cost import Cost, cost_of
from fedpress.compression.models.device_speed import DeviceSpeed
from fedpress.compression.models.pruning import structural


def network(first: int = 4, second: int = 6) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1),
        nn.BatchNorm2d(first),
        nn.ReLU(inplace=True),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * second, 10),
    )


IMAGE = torch.zeros(1, 1, 8, 8)


def test_convolutions_and_products_are_told_apart() -> None:
    found = cost_of(network(), IMAGE)
    assert found.convolution_flops == 2 * 64 * 9 * (1 * 4 + 4 * 6)
    assert found.flops - found.convolution_flops == 2 * 64 * 6 * 10
    assert found.flops == structural.flops_of(network(), IMAGE)
    assert (found.calls, found.convolutions) == (6, 2)  # flattening only looks at the tensor in another way


def test_memory_is_weights_and_the_worst_moment() -> None:
    model = network()
    weights = sum(4 * p.numel() for p in model.parameters()) + 4 * (4 + 4) + 8  # the norm's statistics, its counter
    # While the second ReLU runs: the image, which the caller holds, the convolution's answer and the ReLU's.
    assert cost_of(model, IMAGE).memory_bytes == weights + 4 * (64 + 2 * 64 * 6)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 100))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.steps(x)


def test_what_a_residual_connection_holds_counts() -> None:
    model = nn.Sequential(nn.Linear(100, 100), Residual())
    weights = sum(4 * p.numel() for p in model.parameters())
    # Input, the connection, and two of the activations beside it.
    assert cost_of(model, torch.zeros(1, 100)).memory_bytes == weights + 4 * 100 * 4


def test_the_batch_does_not_matter_and_the_model_is_left_as_it_is() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert cost_of(model, IMAGE.expand(7, -1, -1, -1)) == cost_of(model, IMAGE)
    assert model.training and model[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 8))
def test_a_wider_model_costs_no_less(first: int, second: int) -> None:
    small, large = cost_of(network(first, second), IMAGE), cost_of(network(first + 1, second), IMAGE)
    assert small.flops < large.flops and small.memory_bytes < large.memory_bytes
    assert small.moved_bytes < large.moved_bytes and small.calls == large.calls


rates = st.one_of(st.just(0.0), st.floats(0.001, 1.0))


@settings(deadline=None)
@given(st.tuples(rates, rates, rates, rates, rates).filter(any))
def test_fitting_finds_the_rates_that_made_the_latencies(truth: tuple[float, ...]) -> None:
    """Law: latencies that a device of the model makes are predicted by what is fitted to them, none below zero."""
    speed = DeviceSpeed(*truth)
    costs = [
        Cost(0, convolution + matrix, convolution, 0, moved, calls, convolutions)
        for calls, convolutions, convolution, matrix, moved in (
            (3, 0, 0, 10**6, 10**5), (5, 3, 10**6, 0, 10**6), (9, 1, 2 * 10**6, 10**6, 10**6),
            (4, 1, 10**5, 10**7, 10**7), (30, 2, 10**5, 10**5, 10**5), (8, 2, 10**7, 10**6, 10**6),
            (40, 30, 10**5, 10**5, 10**5),
        )
    ]  # fmt: skip
    latencies = [one.latency_ms(speed) for one in costs]
    if min(latencies) > 0:
        fitted = cost.fit(costs, latencies)
        assert [one.latency_ms(fitted) for one in costs] == pytest.approx(latencies, rel=1e-6)


def test_latencies_that_say_nothing_are_refused() -> None:
    one = Cost(0, 1, 0, 0, 1, 1, 0)
    with pytest.raises(ValueError, match="two or more models"):
        cost.fit([one], [1.0])
    with pytest.raises(ValueError, match="a latency above 0"):
        cost.fit([one, one], [1.0, 0.0])
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        DeviceSpeed(-1.0, 1.0, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="at least one above 0"):
        DeviceSpeed(0.0, 0.0, 0.0, 0.0, 0.0)
