"""Stages are found by what layers put out; models of other names and sizes play the same roles."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models.distillation import stages
from fedpress.compression.models.distillation.stages import Stage
from fedpress.compression.models.pruning import structural
from fedpress.simulations.tasks.digits import Digits
from fedpress.simulations.tasks.fashion_mnist import FashionMNIST


class Residual(nn.Module):
    """Two resolutions with a skip connection, one ReLU for all, and names of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.third, self.relu, self.answer = nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(), nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(x + self.second(x))
        return self.answer(self.relu(self.third(x)).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.memory, self.answer = nn.Embedding(9, 4), nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.memory(self.embedding(x))[0]).transpose(1, 2)


@pytest.mark.parametrize(
    ("model", "example", "expected"),
    [
        (Digits().model(), torch.zeros(2, 1, 8, 8), [(3, 4, 32), (7, 2, 192)]),
        (FashionMNIST().model(), torch.zeros(2, 1, 28, 28), [(1, 4, 32), (4, 4, 64), (8, 2, 512)]),
        (Residual(4), torch.zeros(2, 1, 8, 8), [(3, 4, 4), (5, 4, 8)]),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.zeros(2, 1, 8, 8), []),
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(2, 4), [(1, 2, 8)]),
        (Recurrent(), torch.zeros(2, 5, dtype=torch.int64), [(1, 3, 6)]),
    ],
)
def test_stages_of_models(model: nn.Module, example: Tensor, expected: list[tuple[int, int, int]]) -> None:
    model.train()
    assert stages.stages(model, example) == [Stage(*stage) for stage in expected]
    assert all(module.training for module in model.modules())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_a_pruned_model_has_the_stages_of_the_whole_one() -> None:
    whole, example = Digits().model(), torch.zeros(2, 1, 8, 8)
    small = structural.prune_to(whole, example, 10_000)
    pairs = stages.matched(stages.stages(small, example), stages.stages(whole, example))
    assert [(mine.place, theirs.place) for mine, theirs in pairs] == [(3, 3), (7, 7)]
    assert all(mine.channels < theirs.channels for mine, theirs in pairs)


def test_models_of_different_kinds_meet_where_they_put_out_the_same_kind() -> None:
    images = stages.stages(FashionMNIST().model(), torch.zeros(2, 1, 28, 28))
    layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 10))
    vectors = stages.stages(layers, torch.zeros(2, 1, 28, 28))
    assert stages.matched(vectors, images) == [(Stage(2, 2, 30), Stage(8, 2, 512))]
    assert stages.matched(vectors, images[:2]) == []


@given(st.integers(0, 9), st.integers(0, 9))
def test_alignment_goes_up_in_both_and_ends_at_the_end(first: int, second: int) -> None:
    pairs = stages.aligned(first, second)
    assert len(pairs) == min(first, second)
    for side, length in ((0, first), (1, second)):
        indices = [pair[side] for pair in pairs]
        assert indices == sorted(set(indices)) and (not pairs or indices[-1] == length - 1)


def test_a_record_is_of_the_last_pass() -> None:
    model = Residual(4)
    with stages.recording(model) as record:
        model(torch.zeros(2, 1, 8, 8))
        model(torch.zeros(3, 1, 8, 8))
        assert [len(tensor) for _, tensor in record.outputs] == [3] * 7
