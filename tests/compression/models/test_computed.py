"""A model that holds what it has computed can be copied, and computes the same."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fedpress.compression.models import computed


class Remembering(nn.Module):
    """Keeps its last answers, as attention layers keep their maps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x)
        return self.last


def normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch prefers parametrizations
        return nn.utils.weight_norm(nn.Linear(4, 3))


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.5)  # type: ignore[no-any-return,no-untyped-call]


@pytest.mark.parametrize("make", [Remembering, normed, pruned])
def test_it_can_be_copied_and_learns_as_before(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make(), torch.randn(5, 4)
    model(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    computed.detach(model)
    copied = copy.deepcopy(model)
    found = torch.autograd.grad(copied(x).square().sum(), list(copied.parameters()))
    assert torch.equal(copied(x), model(x)) and all(map(torch.equal, expected, found))
