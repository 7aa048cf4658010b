"""Budgets are met, what is removed is the least important and really gone, and what cannot be pruned stays whole."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models import architecture, prune
from fedpress.compression.models.attention import SelfAttention


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class Residual(nn.Module):
    """A skip connection, depthwise and grouped convolutions, three kinds of norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.group_norm = nn.GroupNorm(4, 32)
        self.layer_norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.stem(x)))
        hidden = self.depthwise(hidden + self.inner(hidden))
        hidden = self.group_norm(self.grouped(hidden))
        answer: Tensor = self.head(self.layer_norm(hidden.mean((2, 3))))
        return answer


class Tied(nn.Module):
    """The output layer's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.hidden = nn.Linear(8, 32)
        self.back = nn.Linear(32, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        answer: Tensor = self.head(self.back(torch.relu(self.hidden(self.embedding(tokens))))).mean(1)
        return answer


class Recurrent(nn.Module):
    """An LSTM, which cannot be rebuilt at another size, between layers that can."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.first(x))
        answer: Tensor = self.head(torch.relu(self.hidden(states[:, -1])))
        return answer


class FixedView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 8, 3)
        self.head = nn.Linear(8 * 36, 20)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.convolution(x).view(-1, 288))
        return answer


IMAGES = torch.zeros(2, 1, 8, 8)
MODELS: dict[str, tuple[Any, Tensor]] = {
    "convolutional": (convolutional, IMAGES),
    "residual": (Residual, IMAGES),
    "tied": (Tied, torch.zeros(2, 5, dtype=torch.int64)),
    "recurrent": (Recurrent, torch.zeros(2, 7, 4)),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@settings(max_examples=8, deadline=None)
@given(budget=st.integers(40, 30_000))
def test_a_budget_is_met_and_used(budget: int) -> None:
    model = convolutional()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        small = prune.prune_to(model, IMAGES, budget)
    except prune.BudgetError:
        assert prune.parameters_of(prune.keep_fraction(model, IMAGES, 0.0)) > budget
        return
    count = prune.parameters_of(small)
    assert count <= budget
    assert count >= min(budget, prune.parameters_of(model)) * 0.7 or budget < 2000  # one channel is a large step there
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_a_pruned_model_runs_and_can_be_rebuilt_from_its_shapes(name: str, fraction: float) -> None:
    make, example = MODELS[name]
    model = make().train()
    small = prune.keep_fraction(model, example, fraction)
    fresh = make()
    architecture.shrink(fresh, architecture.shapes(small))
    fresh.load_state_dict(small.state_dict())

    assert repr(fresh) == repr(small)  # the sizes that layers keep beside their tensors
    assert small.training and torch.equal(fresh.eval()(example), small.eval()(example))
    assert (prune.parameters_of(small) == prune.parameters_of(model)) == (fraction == 1.0)
    assert all(parameter.grad is None for parameter in small.parameters())


def test_channels_that_do_nothing_go_first_and_nothing_changes() -> None:
    model = convolutional()
    dead = {"0": [0, 3, 4, 7, 8, 9, 14, 15], "4": list(range(0, 24, 2)), "7": list(range(32))}
    with torch.no_grad():
        for path, channels in dead.items():
            layer = model.get_submodule(path)
            layer.weight[channels] = 0
            layer.bias[channels] = 0
    inputs = torch.randn(4, 1, 8, 8)

    small = prune.keep_fraction(model, IMAGES, 0.5)

    assert architecture.shapes(small)["4.weight"] == (12, 8, 3, 3)
    torch.testing.assert_close(small.eval()(inputs), model.eval()(inputs))


def test_batch_norm_statistics_are_cut_and_not_touched_by_the_traced_pass() -> None:
    model = convolutional()
    model[1].running_mean.copy_(torch.arange(16))
    small = prune.keep_fraction(model, IMAGES, 0.5)
    kept = small.state_dict()["1.running_mean"].tolist()
    assert len(kept) == 8 and set(kept) <= set(range(16))
    assert int(small.state_dict()["1.num_batches_tracked"]) == 0


def test_an_ignored_layer_keeps_its_channels() -> None:
    model = convolutional()
    small = prune.keep_fraction(model, IMAGES, 0.25, ignored=[model.get_submodule("7")])
    shapes = architecture.shapes(small)
    assert shapes["7.weight"][0] == 64 and shapes["0.weight"][0] == 4


def test_tied_layers_stay_tied_and_whole() -> None:
    small = prune.keep_fraction(Tied(), torch.zeros(2, 5, dtype=torch.int64), 0.25)
    assert small.head.weight is small.embedding.weight
    assert architecture.shapes(small)["hidden.weight"] == (8, 8)


def test_a_layer_that_cannot_be_rebuilt_stays_whole() -> None:
    shapes = architecture.shapes(prune.keep_fraction(Recurrent(), torch.zeros(2, 7, 4), 0.25))
    assert shapes["lstm.weight_ih_l0"] == (64, 8) and shapes["hidden.weight"] == (8, 16)


def test_an_impossible_budget_names_what_is_left_whole() -> None:
    with pytest.raises(prune.BudgetError, match=r"within 1,000 parameters is impossible.*lstm.weight_ih_l0"):
        prune.prune_to(Recurrent(), torch.zeros(2, 7, 4), 1000)


def test_a_size_written_into_the_forward_pass_is_explained() -> None:
    with pytest.raises(prune.PruneError, match=r"x\.flatten\(1\)"):
        prune.keep_fraction(FixedView(), IMAGES, 0.5)


class TwoAnswers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.first(x)
        return hidden, self.second(hidden)


def test_an_output_that_would_shrink_is_refused() -> None:
    model = TwoAnswers()
    with pytest.raises(prune.PruneError, match="changed the model's output"):
        prune.keep_fraction(model, torch.zeros(1, 4), 0.5)
    assert prune.parameters_of(prune.keep_fraction(model, torch.zeros(1, 4), 0.5, ignored=[model.first])) == 51


def test_pruning_draws_nothing_and_is_the_same_twice() -> None:
    model, state = Residual(), torch.random.get_rng_state()
    one, two = (prune.keep_fraction(model, IMAGES, 0.4).state_dict() for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("model", "example", "flops"),
    [
        (nn.Conv2d(1, 2, 3), torch.zeros(4, 1, 5, 5), 2 * 9 * 2 * 9),
        (nn.LSTM(4, 8, batch_first=True), torch.zeros(3, 10, 4), 2 * 10 * 4 * 8 * (4 + 8)),
        (SelfAttention(8, 2), torch.zeros(2, 5, 8), 2 * 5 * 8 * (24 + 8) + 2 * 2 * 5 * 5 * 8),
    ],
    ids=["convolution", "recurrent", "attention"],
)
def test_flops_of_one_example_are_counted(model: nn.Module, example: Tensor, flops: int) -> None:
    assert prune.flops_of(model, example) == flops
    assert model.training
