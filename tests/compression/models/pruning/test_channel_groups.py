"""Groups of channels: what hangs together is one unit, and what cannot be cut is left out."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedpress.compression.models import architecture
from fedpress.compression.models.attention import SelfAttention
from fedpress.compression.models.pruning import channel_groups


class Residual(nn.Module):
    """Two layers whose outputs are added must keep the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        answer: Tensor = self.head(x + torch.relu(self.second(x)))
        return answer


class Tied(nn.Module):
    """A layer that is used twice under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied, self.again, self.head = (nn.Linear(4, 4) for _ in range(4))
        self.again.weight = self.tied.weight

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(torch.relu(self.again(torch.relu(self.tied(torch.relu(self.first(x)))))))
        return answer


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))


def blocks() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))


def attentive() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), SelfAttention(8, 2), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("make", "shape", "units"),
    [
        (plain, (1, 4, 4), [(5, 1)]),
        (blocks, (1, 4, 4), [(2, 4)]),  # a channel of each block of the group norm
        (attentive, (3, 5), [(8, 1), (2, 4), (8, 1)]),  # of the attention its heads
        (Residual, (4,), [(6, 1)]),
        (Tied, (4,), []),  # each of its layers touches one that is tied
    ],
)
def test_units_are_what_goes_at_once(
    make: Callable[[], nn.Module], shape: tuple[int, ...], units: list[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    before = copy.deepcopy(model.state_dict())
    _, groups = channel_groups.find(model, torch.zeros(1, *shape))
    assert [tuple(group.units.shape) for group in groups] == units
    assert all(sorted(group.units.flatten().tolist()) == list(range(group.units.numel())) for group in groups)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("make", [plain, blocks])
def test_what_is_removed_takes_all_that_hangs_on_it(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, inputs = make().eval(), torch.randn(3, 1, 4, 4)
    graph, groups = channel_groups.find(model, inputs[:1])
    whole, units = architecture.shapes(model), groups[0].units
    channels_left = len(model[0].weight) - units.shape[1]  # type: ignore[index, arg-type]
    channel_groups.remove(graph, groups[0], torch.tensor([1]))
    shapes = architecture.shapes(model)
    assert shapes["0.weight"][0] == shapes["1.bias"][0] == channels_left
    assert shapes["4.weight"][1] == channels_left * whole["4.weight"][1] // units.numel()
    assert model(inputs).shape == (3, 3)


def test_a_unit_without_influence_leaves_the_answers_as_they_are() -> None:
    torch.manual_seed(0)
    model, inputs = Residual().eval(), torch.randn(9, 4)
    with torch.no_grad():
        model.head.weight[:, 2] = 0
        model.second.weight[:, 2] = 0
    before = model(inputs)
    graph, groups = channel_groups.find(model, inputs[:1])
    channel_groups.remove(graph, groups[0], torch.tensor([2]))
    assert (model.first.out_features, model.second.out_features, model.head.in_features) == (5, 5, 5)
    torch.testing.assert_close(model(inputs), before)


def test_nothing_is_removed_where_nothing_is_asked_for() -> None:
    model = plain().eval()
    whole = architecture.shapes(model)
    graph, groups = channel_groups.find(model, torch.zeros(1, 1, 4, 4))
    channel_groups.remove(graph, groups[0], torch.empty(0, dtype=torch.int64))
    assert architecture.shapes(model) == whole


def test_layers_to_keep_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 2)).eval()
    _, groups = channel_groups.find(model, torch.zeros(1, 4), [model[0]])
    assert [len(group.units) for group in groups] == [7]
