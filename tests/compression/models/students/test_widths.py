"""Shapes by arithmetic are those of really pruning, for every kind of layer; and the largest within a budget."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models import architecture
from fedpress.compression.models.attention import SelfAttention
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.students.settings import Budget
from fedpress.compression.models.students.widths import Widths


class Mixed(nn.Module):
    """A residual connection with batch norm, grouped convolutions, flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.hidden = nn.Linear(12 * 4, 9)
        self.out = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = torch.relu(x + self.inner(x))
        answer: Tensor = self.out(torch.relu(self.hidden(self.grouped(x).flatten(1))))
        return answer


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(5, 12), SelfAttention(12, 4)
        self.feed, self.back, self.out = nn.Linear(12, 10), nn.Linear(10, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x)
        answer: Tensor = self.out(x + self.back(torch.relu(self.feed(x))))
        return answer


MODELS = {"mixed": (Mixed, torch.zeros(1, 1, 2, 2)), "attentive": (Attentive, torch.zeros(1, 3, 5))}


@cache
def versions_of(name: str) -> Widths:
    make, example = MODELS[name]
    return Widths(make(), example)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_the_shapes_are_those_of_pruning(name: str, data: st.DataObject) -> None:
    """Law: what is said of widths without pruning is what pruning to them makes."""
    versions = versions_of(name)
    assert len(versions.layers) >= 2
    kept = {layer: data.draw(st.integers(1, most), label=layer) for layer, most in versions.layers.items()}
    pruned, hollow = versions.pruned(kept), versions.hollow(kept)
    assert versions.shapes(kept) == architecture.shapes(pruned) == architecture.shapes(hollow)
    example = MODELS[name][1]
    assert hollow(example).shape == pruned(example).shape
    assert structural.flops_of(hollow, example) == structural.flops_of(pruned, example)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 2))


def test_exponents_say_which_layers_stay_wide() -> None:
    versions, budget = Widths(network(), torch.zeros(1, 8)), Budget(parameters=400)
    first, last = versions.largest(budget, {"0": 0.5, "2": 2.0}), versions.largest(budget, {"0": 2.0, "2": 0.5})
    assert first["0"] > versions.largest(budget)["0"] > last["0"] and first["2"] < last["2"]
    for kept in (first, last):
        assert 300 < structural.parameters_of(versions.pruned(kept)) <= 400
    assert versions.largest(Budget(parameters=1.0)) == versions.layers == {"0": 40, "2": 30}


def test_an_impossible_budget_says_what_the_smallest_takes() -> None:
    with pytest.raises(structural.BudgetError, match="within 10 parameters is impossible.*takes 15"):
        Widths(network(), torch.zeros(1, 8)).largest(Budget(parameters=10))
