"""The group lasso is the sum of the norms of what is pruned together, and training with it empties whole units."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedpress.compression.models import architecture
from fedpress.compression.models.attention import SelfAttention
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.pruning.penalties import GroupLasso, l1


def flattened() -> tuple[nn.Module, Tensor, list[list[Tensor]]]:
    """A convolution behind which a flatten spreads each channel over four columns; its units."""
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    w = {name: parameter.detach() for name, parameter in net.named_parameters()}
    units = [[w["0.weight"][i], w["3.weight"][:, 4 * i : 4 * i + 4]] for i in range(3)]
    units += [[w["3.weight"][i], w["5.weight"][:, i]] for i in range(8)]
    return net, torch.zeros(1, 1, 4, 4), units


def attentive() -> tuple[nn.Module, Tensor, list[list[Tensor]]]:
    """Attention of two heads between linear layers; its units."""
    net = nn.Sequential(nn.Linear(5, 8), SelfAttention(8, 2), nn.Linear(8, 2))
    w = {name: parameter.detach() for name, parameter in net.named_parameters()}
    units = [[w["0.weight"][i], w["1.qkv.weight"][:, i]] for i in range(8)]
    units += [[w["1.qkv.weight"].reshape(3, 2, 4, 8)[:, i], w["1.out.weight"][:, 4 * i : 4 * i + 4]] for i in range(2)]
    units += [[w["1.out.weight"][i], w["2.weight"][:, i]] for i in range(8)]
    return net, torch.zeros(1, 3, 5), units


@pytest.mark.parametrize("make", [flattened, attentive])
def test_it_is_the_sum_of_the_norms_of_what_goes_together(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    net, example, units = make()
    joined = [torch.cat([part.flatten() for part in unit]) for unit in units]
    expected = sum(len(unit) ** 0.5 * float(unit.norm()) for unit in joined)
    penalty = GroupLasso(net, example)
    assert float(penalty(net).detach()) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(penalty(copy.deepcopy(net)), penalty(net))


@pytest.mark.parametrize("kind", ["l1", "group lasso"])
def test_training_empties_weights_or_whole_units(kind: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    inputs = torch.randn(200, 6)
    targets = torch.relu(inputs[:, :1]) - torch.relu(inputs[:, 1:2])  # two neurons can do it
    penalty = l1 if kind == "l1" else GroupLasso(model, inputs[:1])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(300):
        optimizer.zero_grad()
        torch.autograd.backward((model(inputs) - targets).square().mean() + 1e-2 * penalty(model))
        optimizer.step()
    first, last = model[0].weight.detach(), model[2].weight.detach()
    units = (first.square().sum(1) + last[0].square()).sqrt()
    assert torch.isfinite(units).all()
    if kind == "l1":
        assert (first.abs() < 1e-3).float().mean() > 0.5
    else:
        assert (units < 0.02).float().mean() > 0.5 and (units > 0.3).any()
        small = structural.keep_fraction(model, inputs[:1], float((units >= 0.02).float().mean()))
        assert architecture.shapes(small)["0.weight"][0] < 8
        torch.testing.assert_close(small(inputs), model(inputs), atol=0.05, rtol=0)


def test_units_that_are_nothing_have_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.autograd.backward(GroupLasso(model, torch.zeros(1, 2))(model))
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
