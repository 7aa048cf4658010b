"""Budgets are met, what is removed is the least important and really gone, and what cannot be pruned stays whole."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models import architecture
from fedpress.compression.models.attention import SelfAttention
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.pruning.settings import Tracing


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


class Transformer(nn.Module):
    """Two blocks; the width is that of a bare parameter, which is kept whole: heads and feed-forward columns go."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(6, 16)
        self.position = nn.Parameter(torch.zeros(5, 16))
        self.attentions = nn.ModuleList(SelfAttention(16, 4) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.ups = nn.ModuleList(nn.Linear(16, 64) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(64, 16) for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x) + self.position
        for attention, norm, up, down in zip(self.attentions, self.norms, self.ups, self.downs, strict=True):
            x = x + attention(norm(x))
            x = x + down(nn.functional.gelu(up(x)))
        answer: Tensor = self.head(x.mean(1))
        return answer


class FixedView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 8, 3)
        self.head = nn.Linear(8 * 36, 20)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.convolution(x).view(-1, 288))
        return answer


class Branches(nn.Module):
    """Two branches of unequal width side by side; what is before and after them can be made smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.wide, self.narrow = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(8, 5, 1)
        self.hidden, self.head = nn.Linear(17 * 64, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        joined = torch.cat([self.wide(x), self.narrow(x)], dim=1)
        answer: Tensor = self.head(torch.relu(self.hidden(joined.flatten(1))))
        return answer


IMAGES = torch.zeros(2, 1, 8, 8)
MODELS: dict[str, tuple[Any, Tensor]] = {
    "convolutional": (convolutional, IMAGES),
    "residual": (Residual, IMAGES),
    "branches": (Branches, IMAGES),
    "tied": (Tied, torch.zeros(2, 5, dtype=torch.int64)),
    "recurrent": (Recurrent, torch.zeros(2, 7, 4)),
    "transformer": (Transformer, torch.zeros(2, 5, 6)),
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
        small = structural.prune_to(model, IMAGES, budget)
    except structural.BudgetError:
        assert structural.parameters_of(structural.keep_fraction(model, IMAGES, 0.0)) > budget
        return
    count = structural.parameters_of(small)
    assert count <= budget
    assert (
        count >= min(budget, structural.parameters_of(model)) * 0.7 or budget < 2000
    )  # one channel is a large step there
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_a_pruned_model_runs_and_can_be_rebuilt_from_its_shapes(name: str, fraction: float) -> None:
    make, example = MODELS[name]
    model = make().train()
    small = structural.keep_fraction(model, example, fraction)
    fresh = make()
    architecture.shrink(fresh, architecture.shapes(small))
    fresh.load_state_dict(small.state_dict())

    assert repr(fresh) == repr(small)  # the sizes that layers keep beside their tensors
    assert small.training and torch.equal(fresh.eval()(example), small.eval()(example))
    assert (structural.parameters_of(small) == structural.parameters_of(model)) == (fraction == 1.0)
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

    small = structural.keep_fraction(model, IMAGES, 0.5)

    assert architecture.shapes(small)["4.weight"] == (12, 8, 3, 3)
    torch.testing.assert_close(small.eval()(inputs), model.eval()(inputs))


def test_batch_norm_statistics_are_cut_and_not_touched_by_the_traced_pass() -> None:
    model = convolutional()
    model[1].running_mean.copy_(torch.arange(16))
    small = structural.keep_fraction(model, IMAGES, 0.5)
    kept = small.state_dict()["1.running_mean"].tolist()
    assert len(kept) == 8 and set(kept) <= set(range(16))
    assert int(small.state_dict()["1.num_batches_tracked"]) == 0


def test_an_ignored_layer_keeps_its_channels() -> None:
    model = convolutional()
    small = structural.keep_fraction(model, IMAGES, 0.25, ignored=[model.get_submodule("7")])
    shapes = architecture.shapes(small)
    assert shapes["7.weight"][0] == 64 and shapes["0.weight"][0] == 4


def test_tied_layers_are_cut_once_and_stay_tied() -> None:
    small = structural.keep_fraction(Tied(), torch.zeros(2, 5, dtype=torch.int64), 0.25)
    assert small.head.weight is small.embedding.weight
    shapes = architecture.shapes(small)
    assert shapes["embedding.weight"] == (20, 2) and shapes["hidden.weight"] == (8, 2)


def test_a_layer_that_cannot_be_rebuilt_stays_whole() -> None:
    shapes = architecture.shapes(structural.keep_fraction(Recurrent(), torch.zeros(2, 7, 4), 0.25))
    assert shapes["lstm.weight_ih_l0"] == (64, 8) and shapes["hidden.weight"] == (8, 16)


def test_an_impossible_budget_names_what_is_left_whole() -> None:
    with pytest.raises(structural.BudgetError, match=r"within 1,000 parameters is impossible.*lstm.weight_ih_l0"):
        structural.prune_to(Recurrent(), torch.zeros(2, 7, 4), 1000)


def test_a_size_written_into_the_forward_pass_is_explained() -> None:
    model = FixedView()
    with pytest.raises(structural.PruneError, match=r"nothing can be removed.*'convolution'.*x\.flatten\(1\)"):
        structural.keep_fraction(model, IMAGES, 0.5)
    assert structural.layers_of(model, IMAGES) == {}
    assert architecture.shapes(structural.keep_fraction(model, IMAGES, 1.0)) == architecture.shapes(model)
    with pytest.raises(structural.PruneError, match="nothing can be removed"):
        structural.prune_to(model, IMAGES, 10)


class TwoAnswers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.first(x)
        return hidden, self.second(hidden)


def test_what_is_an_output_keeps_its_size() -> None:
    model, example = TwoAnswers(), torch.randn(3, 4)
    assert structural.layers_of(model, example) == {}
    small = structural.keep_fraction(model, example, 0.5)
    assert all(torch.equal(one, other) for one, other in zip(small(example), model(example), strict=True))


def test_pruning_draws_nothing_and_is_the_same_twice() -> None:
    model, state = Residual(), torch.random.get_rng_state()
    one, two = (structural.keep_fraction(model, IMAGES, 0.4).state_dict() for _ in range(2))
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
    assert structural.flops_of(model, example) == flops
    assert model.training


def test_heads_and_feed_forward_columns_are_gone() -> None:
    model, example = Transformer(), torch.randn(2, 5, 6)
    with torch.no_grad():  # heads 0 and 2 of the first block answer nothing
        model.attentions[0].out.weight[:, [0, 1, 2, 3, 8, 9, 10, 11]] = 0
        model.attentions[0].qkv.weight.reshape(3, 4, 4, 16)[:, [0, 2]] = 0
    layers = [name for name in structural.layers_of(model, example) if "qkv" in name or "ups" in name]
    small = structural.keep_fraction(model, example, dict.fromkeys(layers, 0.5))
    shapes = architecture.shapes(small)
    assert [attention.heads for attention in small.attentions] == [2, 2]
    assert shapes["attentions.0.qkv.weight"] == (24, 16) and shapes["attentions.0.out.weight"] == (16, 8)
    assert shapes["ups.0.weight"] == (32, 16) and shapes["downs.0.weight"] == (16, 32)
    kept = model.attentions[0].out.weight[:, [4, 5, 6, 7, 12, 13, 14, 15]]
    assert torch.equal(small.attentions[0].out.weight, kept)
    flops = 2 * 5 * 16 * (24 + 8) + 2 * 2 * 2 * 5 * 5 * 4  # of an attention: its projections, its two heads
    assert structural.flops_of(small.attentions[0], torch.zeros(1, 5, 16)) == flops
    assert structural.flops_of(small, example) < 0.6 * structural.flops_of(model, example)


@pytest.mark.parametrize("name", ["l1", "l2", "taylor", "lamp", "random"])
@pytest.mark.parametrize("ranking", ["uniform", "global"])
def test_every_importance_meets_a_budget(name: str, ranking: str) -> None:
    model = convolutional()
    gradients = {key: torch.rand(parameter.shape) for key, parameter in model.named_parameters()}
    small = structural.prune_to(model, IMAGES, 6_000, criterion=Criterion(name, ranking, gradients))
    assert 4_500 < structural.parameters_of(small) <= 6_000
    assert all(parameter.grad is None for parameter in small.parameters())


def test_global_ranking_takes_what_is_least_wherever_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 2))
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.weight.fill_(1)
        for layer in (model[2].weight[1:], model[4].weight[:, 1:]):  # nine of the second layer's neurons
            layer.fill_(0.01)
    small = structural.keep_fraction(model, torch.zeros(1, 4), 0.55, criterion=Criterion(ranking="global"))
    assert (small[0].out_features, small[2].out_features) == (10, 1)


def test_taylor_keeps_what_the_loss_feels() -> None:
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    felt = {key: torch.zeros_like(parameter) for key, parameter in model.named_parameters()}
    felt["0.weight"][[2, 5]] = 1e-3
    small = structural.keep_fraction(model, torch.zeros(1, 4), 0.2, criterion=Criterion("taylor", gradients=felt))
    assert torch.equal(small[0].weight, model[0].weight[[2, 5]])


def test_a_criterion_that_channels_do_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="not defined for channels"):
        structural.keep_fraction(convolutional(), IMAGES, 0.5, criterion=Criterion(ranking="erk"))


def test_each_layer_keeps_its_own_fraction() -> None:
    model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 2))
    example = torch.zeros(1, 4)
    assert structural.layers_of(model, example) == {"0": 20, "2": 10}
    assert structural.layers_of(model, example, ignored=[model[0]]) == {"2": 10}
    assert structural.layers_of(structural.keep_fraction(model, example, {"0": 0.25}), example) == {"0": 5, "2": 10}
    small = structural.keep_fraction(model, example, {"0": 0.25, "2": 0.0})
    assert (small[0].out_features, small[2].out_features) == (5, 1)
    assert structural.layers_of(small, example) == {"0": 5}  # of the only channel nothing can be removed
    with pytest.raises(structural.PruneError, match=r"removed from \['4'\]; layers .*: \['0', '2'\]"):
        structural.keep_fraction(model, example, {"4": 0.5})
    with pytest.raises(ValueError, match="'global' decides itself"):
        structural.keep_fraction(model, example, {"0": 0.5}, criterion=Criterion(ranking="global"))


@pytest.mark.parametrize("budget", [0.8, 0.5])
def test_the_width_that_blocks_hand_on_may_stay(budget: float) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 96, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    model, example = nn.Sequential(nn.Linear(5, 16), encoder, nn.Linear(16, 3)).eval(), torch.randn(2, 6, 5)
    most = int(budget * structural.parameters_of(model))
    criterion = Criterion(tracing=Tracing(width="keep"))
    kept = structural.prune_to(model, example, most, criterion=criterion)
    assert 0.95 * most < structural.parameters_of(kept) <= most
    assert kept[0].out_features == 16 and kept(example).shape == (2, 6, 3)
    assert structural.prune_to(model, example, most)[0].out_features < 16
    assert all("layers" in name for name in structural.Pruner(model, example, criterion=criterion).layers)
