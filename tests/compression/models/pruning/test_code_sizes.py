"""Numbers in a model's code follow its units by where they are used, not by what they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedpress.compression.models import architecture
from fedpress.compression.models.architecture import ArchitectureError
from fedpress.compression.models.pruning import channel_groups, structural


class Attention(nn.Module):
    """Four heads of four entries: the values do not tell which number is which."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.heads, self.width, self.layers = 4, 4, 16, 4
        self.qkv, self.out = nn.Linear(10, 48), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        query, key, value = (
            part.view(n, length, self.heads, self.size).transpose(1, 2)
            for part in self.qkv(x).split(self.width, dim=-1)
        )
        maps = (query @ key.transpose(-2, -1) / self.size**0.5).softmax(-1)
        answer: Tensor = self.out((maps @ value).transpose(1, 2).reshape(n, length, self.width))
        return answer


def test_numbers_follow_by_their_place() -> None:
    torch.manual_seed(0)
    model, x = Attention(), torch.randn(2, 5, 10)
    (group,) = channel_groups.find(model, x)
    assert (group.units, dict(group.sizes)) == (4, {"heads": 1, "width": 4})
    small = structural.keep_fraction(model, x, 0.5)
    assert (small.heads, small.size, small.width, small.layers) == (2, 4, 8, 4)
    assert architecture.sizes(small) == {"heads": 2, "width": 8} and architecture.sizes(model) == {}
    assert type(model.heads) is int and small(x).shape == x.shape

    again = Attention()
    with pytest.raises(RuntimeError):  # the shapes are not enough
        architecture.shrink(again, architecture.shapes(small))
        again(x)
    again = Attention()
    architecture.shrink(again, architecture.shapes(small), architecture.sizes(small))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))

    smallest = structural.keep_fraction(small, x, 0.5)
    assert architecture.sizes(smallest) == {"heads": 1, "width": 4}


@pytest.mark.parametrize("numbers", [{"heads": 0}, {"heads": 5}, {"other": 1}, {"qkv.bias": 1}, {"nowhere.heads": 1}])
def test_other_numbers_are_refused(numbers: dict[str, int]) -> None:
    model = Attention()
    with pytest.raises(ArchitectureError, match="expected a whole number of a layer"):
        architecture.shrink(model, architecture.shapes(model), numbers)
    assert model.heads == 4 and architecture.sizes(model) == {}


class Sliced(nn.Module):
    """Bounds of slices and sizes of constants are numbers, too."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.first, self.head = 6, nn.Linear(5, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = self.first(x)
        answer: Tensor = self.head(both[..., : self.hidden] * torch.sigmoid(both[..., self.hidden :]))
        return answer


def test_a_bound_of_a_slice_follows() -> None:
    torch.manual_seed(0)
    small = structural.keep_fraction(Sliced(), torch.randn(4, 5), 0.5)
    assert small.hidden == 3 and small.first.out_features == 6
