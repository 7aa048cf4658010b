"""Groups of channels: what hangs together is one unit, what is removed is what was meant, and the rest stays whole."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.apps.networks import COUNTED, NETWORKS
from torch import Tensor, nn
from torch.nn import functional as F

from fedpress.compression.models import architecture
from fedpress.compression.models.attention import SelfAttention
from fedpress.compression.models.pruning import channel_groups, structural
from fedpress.compression.models.pruning.channel_groups import Group
from fedpress.compression.models.pruning.structural import PruneError


class Residual(nn.Module):
    """Two layers whose outputs are added must keep the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        answer: Tensor = self.head(x + torch.relu(self.second(x)))
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
        (plain, (1, 4, 4), {"0": (5, 1)}),
        (blocks, (1, 4, 4), {"0": (2, 4)}),  # a channel of each block of the group norm
        (attentive, (3, 5), {"0": (8, 1), "1.qkv": (2, 12), "1.out": (8, 1)}),  # of the attention its heads
        (Residual, (4,), {"first": (6, 1)}),
    ],
)
def test_units_are_what_goes_at_once(
    make: Callable[[], nn.Module], shape: tuple[int, ...], units: dict[str, tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    model = make()
    before = copy.deepcopy(model.state_dict())
    groups = channel_groups.find(model, torch.zeros(1, *shape))
    assert {group.name: tuple(group.members[0].positions.shape) for group in groups} == units
    assert [group.name for group in groups] == list(units)[::-1]
    assert all(group.units == member.positions.shape[0] for group in groups for member in group.members)
    assert model.training and all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("make", [plain, blocks])
def test_what_is_removed_takes_all_that_hangs_on_it(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, inputs = make().eval(), torch.randn(3, 1, 4, 4)
    (group,) = channel_groups.find(model, inputs[:1])
    whole, before = architecture.shapes(model), model(inputs)
    left = whole["0.weight"][0] - group.members[0].positions.shape[1]

    with channel_groups.without(model, [(group, torch.tensor([1]))]):
        shapes = architecture.shapes(model)
        assert shapes["0.weight"][0] == shapes["1.bias"][0] == left
        assert shapes["4.weight"][1] == left * whole["4.weight"][1] // whole["0.weight"][0]
        assert model(inputs).shape == (3, 3)
    assert architecture.shapes(model) == whole and torch.equal(model(inputs), before)  # put back

    channel_groups.cut(model, [(group, torch.tensor([1]))])
    assert architecture.shapes(model) == shapes


def answers(model: nn.Module, batch: Any) -> list[Tensor]:
    with torch.no_grad():
        return channel_groups.outputs_of(channel_groups.called(channel_groups.copied(model).eval(), batch))


def silenced(model: nn.Module, groups: list[Group], generator: torch.Generator) -> nn.Module:
    """Return a copy in which half of the units of each group write and read nothing."""
    dead = channel_groups.copied(model)
    tensors = channel_groups.named_tensors(dead)
    for group in groups:
        units = torch.randperm(group.units, generator=generator)[: group.units - round(0.5 * group.units)]
        for member in group.members:
            tensors[member.tensor].data.index_fill_(member.axis, member.positions[units].flatten(), 0)
    return dead


def exchanged(model: nn.Module, groups: list[Group], generator: torch.Generator) -> nn.Module:
    """Return a copy in which the units of each group have changed places."""
    other = channel_groups.copied(model)
    tensors = channel_groups.named_tensors(other)
    for group in groups:
        order = torch.randperm(group.units, generator=generator)
        for member in group.members:
            tensor = tensors[member.tensor]
            places = torch.arange(tensor.shape[member.axis])
            places[member.positions.flatten()] = member.positions[order].flatten()
            tensor.data = tensor.data.index_select(member.axis, places)
    return other


def check(make: Callable[[], nn.Module], batch: Any, counted: bool) -> dict[str, int]:
    """Check the law on one network and return its prunable layers.

    Whatever is found to be one unit may change places with another one without a change of the outputs, and may go
    without one where it was silent; the shapes alone bring back the smaller model.
    """
    model, draw = make().eval(), torch.Generator().manual_seed(2)
    groups = channel_groups.find(model, batch)
    expected = answers(model, batch)
    for one, other in zip(answers(exchanged(model, groups, draw), batch), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    dead = silenced(model, groups, draw)
    small = structural.keep_fraction(dead, batch, 0.5)
    for one, other in zip(answers(small, batch), answers(dead, batch), strict=True):
        assert one.shape == other.shape
        if not counted:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    again = make().eval()
    architecture.shrink(again, architecture.shapes(small), architecture.sizes(small))
    again.load_state_dict(small.state_dict())
    for one, other in zip(answers(again, batch), answers(small, batch), strict=True):
        assert torch.equal(one, other)
    return {group.name: group.units for group in reversed(groups)}


PRUNABLE: dict[str, dict[str, int]] = {
    "BesideTheInput": {"inner": 6, "outer": 8},
    "InputLast": {"left": 5, "right": 7, "outer": 8},
    "TwiceTheSame": {"inner": 6, "outer": 8},
    "DenseBlock": {"stem": 6, "layers.0": 4, "layers.1": 4, "layers.2": 4},
    "FlattenedUnlike": {"fine": 4, "coarse": 6, "hidden": 10},
    "FlattenedLast": {"inner": 6, "hidden": 10},
    "FlattenedBackwards": {"inner": 6, "hidden": 10},
    "ShuffledByHand": {"stem": 4, "first": 1, "second": 4},
    "ShuffledPlain": {"stem": 3, "second": 10},
    "SplitAndShuffled": {"stem": 1, "branch": 1, "next": 10},
    "Permuted": {"second": 10},
    "Selected": {"second": 10},
    "Rolled": {"second": 10},
    "OutOfNumpy": {"second": 9},
    "HalvesByNumber": {},
    "HalvesOfTheSize": {"first": 8},
    "UnequalHalves": {"left": 5},
    "Gated": {"first": 8, "second": 6},
    "ThreeParts": {"middle": 4},
    "Maxout": {"first": 8},
    "MaxoutOverBlocks": {"first": 8},
    "WithConstants": {"first": 10, "second": 10},
    "SizeInTheView": {"hidden": 10},
    "BroadcastInput": {"inner": 8, "outer": 8},
    "ResidualInput": {"inner": 8, "outer": 8},
    "ResidualNet": {"stem": 8, "a": 8, "c": 12, "d": 12},
    "PaddedShortcut": {"stem": 6, "inner": 8},
    "Grouped": {"stem": 4, "grouped": 6},
    "Depthwise": {"stem": 6, "point": 5, "mix": 7},
    "Transposed": {"down": 6, "middle": 8, "grouped": 4},
    "PixelShuffled": {"stem": 4, "next": 6, "last": 6},
    "Unfolded": {"stem": 6, "patches": 8},
    "SqueezeAndExcitation": {"stem": 12, "squeeze": 4},
    "SpatialAttention": {"stem": 12},
    "ChannelAttention": {"next": 8},
    "Norms": {"a": 4, "b": 10, "c": 8, "hidden": 9},
    "Rectified": {"stem": 8},
    "BareScale": {"stem": 8, "next": 10},
    "UsedTwice": {"first": 10},
    "Siamese": {"tower": 9, "both": 8},
    "TwoNames": {"first": 9},
    "TiedTable": {"up": 18, "down": 8},
    "WeightNormed": {"second": 9},
    "SpectralNormed": {"first": 10},
    "OldWeightNormed": {"second": 9},
    "BareWeights": {"first": 10, "second": 9, "third": 8, "list": 8},
    "Adapted": {"first": 16, "second": 10, "down": 3},
    "Bilinear": {"hidden": 9},
    "SoftmaxOfChannels": {"first": 10, "experts": 8},
    "NamedArguments": {"first": 10},
    "Recurrent": {"hidden": 12},
    "OneDimension": {"a": 12, "b": 8},
    "TorchEncoder": {"first": 8}
    | {
        f"encoder.layers.{number}.{name}": units
        for number in (0, 1)
        for name, units in (("self_attn", 2), ("linear1", 24))
    },
    "BuiltInVision": {
        "patches": 12,
        "blocks.0.attention.qkv": 3,
        "blocks.0.hidden.0": 20,
        "blocks.1.attention.qkv": 3,
        "blocks.1.hidden.0": 20,
    },
    "BuiltInCausal": {
        "blocks.0.attention.qkv": 3,
        "blocks.0.attention.out": 12,
        "blocks.0.hidden.0": 20,
        "blocks.1.attention.qkv": 3,
        "blocks.1.hidden.0": 20,
    },
    "BertOfHeadSize": {"query": 3, "out": 12, "up": 24, "pool": 12},
    "BertOfHeadCount": {"query": 3, "out": 12, "up": 24, "pool": 12},
    "Gpt": {"blocks.0.qkv": 3, "blocks.0.out": 12, "blocks.0.up": 24, "blocks.1.qkv": 3, "blocks.1.up": 24},
    "LlamaOwnNorm": {
        "blocks.0.query": 3,
        "blocks.0.out": 24,
        "blocks.0.gate": 30,
        "blocks.1.query": 3,
        "blocks.1.gate": 30,
    },
    "LlamaTorchNorm": {
        "blocks.0.query": 3,
        "blocks.0.out": 24,
        "blocks.0.gate": 30,
        "blocks.1.query": 3,
        "blocks.1.gate": 30,
    },
    "LlamaDeep": {"blocks.0.out": 24} | {f"blocks.{number}.gate": 30 for number in range(5)},
    "VisionOfTokens": {"patches": 12, "qkv": 3, "up": 20},
    "Mixer": {"patches": 10, "token_up": 11, "up": 18},
    "LinearAttention": {"value": 8},
    "CrossAttention": {"first": 8, "keys": 8, "mix.qkv": 2, "mix.out": 8, "values": 12},
}
"""Layers of `NETWORKS` that can be made smaller, with their units; the others stay whole."""


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"Noisy", "HalvesByNumber"}))
def test_no_rearrangement_slips_through(name: str) -> None:
    torch.manual_seed(1)
    make, batch = NETWORKS[name]
    assert check(make, batch(), name in COUNTED) == PRUNABLE[name]


def test_where_all_would_be_wrong_nothing_is_removed() -> None:
    make, batch = NETWORKS["HalvesByNumber"]
    assert channel_groups.find(make(), batch()) == []
    with pytest.raises(PruneError, match=r"nothing can be removed.*layer 'first': the pruned model does not run"):
        structural.keep_fraction(make(), batch(), 0.5)


def test_what_draws_in_evaluation_mode_is_pruned_as_if_it_did_not() -> None:
    make, batch = NETWORKS["Noisy"]
    assert [group.name for group in channel_groups.find(make(), batch())] == ["second", "first"]


class Anything(nn.Module):
    """A network of random pieces, of the given names and sizes, between a first layer and a head."""

    def __init__(self, pieces: list[tuple[str, int]]) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.names = [name for name, _ in pieces]
        self.layers = nn.ModuleList()
        width = 8
        for name, size in pieces:
            layers: list[nn.Module] = []
            if name in ("layer", "beside", "residual", "input"):
                inner = width + 2 if name == "input" else width
                layers = [nn.Conv2d(inner, width if name == "residual" else 4 * size, 3, padding=1)]
            elif name == "grouped":
                layers = [nn.Conv2d(width, 2 * width, 1, groups=2)]
            elif name == "depthwise":
                layers = [nn.Conv2d(width, 2 * width, 3, padding=1, groups=width)]
            elif name == "norm":
                layers = [nn.BatchNorm2d(width)]
            elif name == "excite":
                layers = [nn.Linear(width, size), nn.Linear(size, width)]
            elif name == "gate":
                layers = [nn.Conv2d(width, 8 * size, 1)]
            elif name == "mlp":
                layers = [nn.Linear(width, 5 * size), nn.Linear(5 * size, width)]
            self.layers.append(nn.ModuleList(layers))
            width = {
                "layer": 4 * size,
                "input": 4 * size,
                "beside": width + 4 * size,
                "grouped": 2 * width,
                "depthwise": 2 * width,
                "gate": 4 * size,
            }.get(name, width)
        self.last, self.head = nn.Linear(width * 16, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        image, x = x, F.relu(self.first(x))
        for name, layers in zip(self.names, self.layers, strict=True):
            n, c, h, w = x.shape
            if name in ("layer", "grouped", "depthwise", "norm"):
                x = F.relu(layers[0](x))
            elif name == "beside":
                x = torch.cat([torch.tanh(layers[0](x)), x], dim=1)
            elif name == "input":
                x = F.relu(layers[0](torch.cat([x, image], dim=1)))
            elif name == "residual":
                x = x + F.gelu(layers[0](x))
            elif name == "excite":
                x = x * torch.sigmoid(layers[1](F.relu(layers[0](x.mean((2, 3))))))[:, :, None, None]
            elif name == "gate":
                one, two = layers[0](x).chunk(2, dim=1)
                x = one * torch.sigmoid(two)
            elif name == "mlp":
                x = x + layers[1](F.relu(layers[0](x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
            elif name == "shuffle":
                x = x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            elif name == "halves":
                x = torch.cat([x[:, c // 2 :], x[:, : c // 2]], dim=1)
            elif name == "order":
                x = x[:, torch.arange(c - 1, -1, -1)]
            elif name == "roll":
                x = x.roll(1, dims=1)
            elif name == "by number":
                x = x.view(-1, x.shape[1], h * w).flatten(1).view(n, c, h, w)
        return self.head(F.relu(self.last(F.max_pool2d(x, 2).flatten(1))))


PIECES = "layer beside residual input grouped depthwise norm excite gate mlp shuffle halves order roll".split() + [
    "by number"
]


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PIECES), st.integers(1, 2)), min_size=1, max_size=5))
def test_no_rearrangement_slips_through_a_network_of_random_pieces(pieces: list[tuple[str, int]]) -> None:
    torch.manual_seed(3)
    batch = torch.randn(2, 2, 8, 8)
    try:
        layers = check(lambda: Anything(pieces), batch, counted=False)
    except PruneError as error:
        assert "x.flatten(1)" in str(error)
        return
    assert "last" in layers


# ---- what cannot be traced, and what is named ------------------------------------------------------------------------


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 2))


def test_layers_to_keep_are_left_out() -> None:
    model = two_layers()
    assert [group.name for group in channel_groups.find(model, torch.zeros(1, 4), [model[0]])] == ["2"]  # type: ignore[index]
    assert [group.name for group in channel_groups.find(model, torch.zeros(1, 4), ["2"])] == ["0"]
    assert channel_groups.find(model, torch.zeros(1, 4), ["[02]"]) == []


def test_a_name_stands_for_all_parts_and_an_unknown_one_is_refused() -> None:
    make, batch = NETWORKS["BuiltInCausal"]
    names = [group.name for group in channel_groups.find(make(), batch(), ["blocks.0", "blocks.*.attention"])]
    assert names == ["blocks.1.hidden.0"]  # the width is that of what blocks.0 writes
    with pytest.raises(PruneError, match=r"no layer is called 'block\.0'; expected .*; did you mean 'blocks\.0'\?"):
        channel_groups.find(make(), batch(), ["block.0"])


def test_what_stays_whole_is_said(caplog: pytest.LogCaptureFixture) -> None:
    make, batch = NETWORKS["LlamaDeep"]
    with caplog.at_level(logging.WARNING):
        channel_groups.find(make(), batch())
    (record,) = caplog.records
    assert "keep all their channels: blocks.4.query" in record.message and "does not run" in record.message


def test_a_layer_without_shape_is_named() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(PruneError, match=r"layer '0' is a LazyLinear .*run the model on one before"):
        structural.keep_fraction(model, torch.zeros(1, 3), 0.5)
    model(torch.zeros(1, 3))
    assert structural.layers_of(model, torch.zeros(1, 3)) == {"0": 4}


class Locked(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.lock = threading.Lock()


def test_what_cannot_be_copied_is_named() -> None:
    with pytest.raises(PruneError, match=r"layer '1\.0', a Locked, cannot be copied: TypeError"):
        structural.keep_fraction(nn.Sequential(nn.Linear(4, 4), nn.Sequential(Locked())), torch.zeros(1, 4), 0.5)


class Remembering(nn.Linear):
    """Keeps its last output, with its history."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


def test_what_a_layer_remembers_does_not_prevent_a_copy() -> None:
    model = nn.Sequential(Remembering(4, 6), nn.ReLU(), nn.Linear(6, 2))
    before = model(torch.ones(1, 4))
    small = structural.keep_fraction(model, torch.zeros(1, 4), 0.5)
    assert small[0].out_features == 3 and model(torch.ones(1, 4)).equal(before)


def test_hooks_run_as_in_the_model() -> None:
    model, seen = two_layers(), []
    model[0].register_forward_hook(lambda layer, inputs, output: output * 2)  # type: ignore[index]
    model[2].register_forward_pre_hook(lambda layer, inputs: seen.append(1))  # type: ignore[index]
    small = structural.keep_fraction(model, torch.zeros(1, 4), 0.5)
    assert seen and small[0].out_features == 3
    small(torch.zeros(1, 4))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = two_layers(), nn.Linear(2, 2)

    def forward(self, x: Tensor, scale: Tensor, *, twice: bool = False) -> Tensor:
        return self.head(self.layers(x) * scale) * (2 if twice else 1)


@pytest.mark.parametrize(
    "example", [(torch.ones(1, 4), torch.ones(1)), {"x": torch.ones(1, 4), "scale": torch.ones(1), "twice": True}]
)
def test_arguments_are_a_tuple_or_a_dict(example: Any) -> None:
    model = TwoInputs()
    assert structural.layers_of(model, example) == {"layers.0": 6, "layers.2": 7, "layers.4": 2}
    assert structural.keep_fraction(model, example, 0.5).layers[0].out_features == 3


class Failing(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.layer, self.error = nn.Linear(4, 4), error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize(
    "error", [KeyError("attention_mask"), AssertionError(), RuntimeError("shape"), OSError("file")]
)
def test_whatever_the_model_raises_is_one_error(error: Exception) -> None:
    for example in (torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.int64), (), {"y": 1}):
        with pytest.raises(PruneError, match="does not run on the example"):
            channel_groups.find(Failing(error), example)


@pytest.mark.parametrize("output", [None, 3, "text", [], {}])
def test_an_answer_without_tensors_is_refused(output: Any) -> None:
    class Silent(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return output

    with pytest.raises(PruneError, match="without tensors"):
        channel_groups.find(Silent(2, 2), torch.zeros(1, 2))


def test_a_model_that_needs_float32_is_tried_in_it() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = two_layers()

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x @ torch.eye(4, dtype=torch.float32))

    assert structural.layers_of(Single(), torch.zeros(1, 4)) == {"layers.0": 6, "layers.2": 7}


def test_a_search_through_many_paths_ends() -> None:
    """Each block doubles the number of paths; what follows them one by one would not end."""

    class Paths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.ModuleList(nn.Linear(6, 6) for _ in range(24)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1) + torch.cat([layer(x)[:, 3:], x[:, :3]], dim=1)
            return self.head(x)

    assert channel_groups.find(Paths(), torch.zeros(1, 6), seconds=60) == []  # its width is that of the input
