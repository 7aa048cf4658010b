"""Labels follow the entries: what an operation moves, joins and sums up, its labels are moved, joined and kept by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fedpress.compression.models.pruning.channel_flow import Flow
from fedpress.compression.models.pruning.channel_labels import Axes, LabelSets, TensorLabels


def followed(operation: Callable[..., Tensor], *tensors: Tensor, parts: dict[int, int] | None = None) -> list[Axes]:
    """Return the labels of the operation's result, then those of the tensors, which began with a label a position."""
    sets = LabelSets()
    begun = [[sets.new(size) if size > 1 else np.zeros(1, np.int64) for size in tensor.shape] for tensor in tensors]
    labels = TensorLabels(zip(tensors, begun, strict=True), sets, parts)
    with torch.no_grad(), Flow(labels, 60):
        result = operation(*tensors)
    return [[sets.of(axis) for axis in axes] for axes in (labels.axes(result), *begun)]


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: x.flip(1),
    "double": lambda x: torch.cat([x, x], dim=1),
    "cut off": lambda x: x[:, 1:],
    "every other": lambda x: x[:, ::2],
    "last first": lambda x: x.movedim(1, 2).contiguous().movedim(2, 1),
    "halves": lambda x: torch.cat(x.chunk(2, dim=1)[::-1], dim=1) if x.shape[1] % 2 == 0 else x,
    "squeezed": lambda x: x.unsqueeze(1).squeeze(1),
    "repeated": lambda x: x.repeat(1, 2, 1),
    "repeated in turn": lambda x: x.repeat_interleave(2, dim=1),
    "merged and cut": lambda x: x.flatten(1).unflatten(1, (x.shape[1], x.shape[2])),
    "padded": lambda x: F.pad(x, (0, 0, 1, 2)),
}


@given(st.lists(st.sampled_from(sorted(MOVES)), max_size=5), st.integers(2, 6))
def test_labels_go_where_the_entries_go(names: list[str], channels: int) -> None:
    numbers = torch.arange(1, channels + 1).double()[None, :, None].expand(2, channels, 3).contiguous()

    def moved(x: Tensor) -> Tensor:
        for name in names:
            x = MOVES[name](x)
        return x

    (_, labels, last), (_, own, _) = followed(moved, numbers)
    entries = moved(numbers)[0, :, 0].long()
    assert len(labels) == len(entries) and len(last) == 3
    for label, entry in zip(labels.tolist(), entries.tolist(), strict=True):
        origin = own[entry - 1] if entry else 0  # padding is nobody's
        assert label == origin or (not origin and label not in own)  # copies of what is kept


@pytest.mark.parametrize(
    ("operation", "shape", "expected"),
    [
        (lambda x: x.flatten(1), (1, 2, 3), [["a"] * 3 + ["b"] * 3]),
        (lambda x: x.transpose(1, 2).flatten(1), (1, 2, 3), [["a", "b"] * 3]),
        (lambda x: F.pixel_shuffle(x, 2), (1, 8, 2, 2), [["a", "b"], [], []]),
        (lambda x: F.pixel_unshuffle(x, 2), (1, 2, 2, 2), [["a"] * 4 + ["b"] * 4, [], []]),
        (lambda x: F.channel_shuffle(x, 2), (1, 4, 2, 2), [["a", "a", "b", "b"], [], []]),
        (lambda x: F.unfold(x, 2), (1, 2, 2, 2), [["a"] * 4 + ["b"] * 4, []]),
        (lambda x: F.glu(x, 1), (1, 6, 1), [["a", "b", "c"], []]),
        (lambda x: x.unfold(2, 2, 1), (1, 2, 3), [["a", "b"], [], []]),
        (lambda x: x[:, [1, 0]], (1, 2, 1), [[], []]),
        (lambda x: x[:, :, [1, 0]], (1, 2, 2), [["a", "b"], []]),
        (lambda x: x.index_select(1, torch.tensor([0])), (1, 3, 1), [[], []]),
        (lambda x: x.roll(1, 1), (1, 3, 1), [[], []]),
        (lambda x: x.cumsum(1), (1, 3, 1), [[], []]),
        (lambda x: x.softmax(1), (1, 3, 1), [["a", "b", "c"], []]),
        (lambda x: x.sum(2), (1, 3, 2), [["a", "b", "c"]]),
        (lambda x: x.var(-1, keepdim=True), (1, 3, 2), [["a", "b", "c"], []]),
        (lambda x: x.norm(2, 2), (1, 3, 2), [["a", "b", "c"]]),
        (lambda x: F.max_pool2d(x, 2), (1, 3, 2, 2), [["a", "b", "c"], [], []]),
        (lambda x: F.adaptive_avg_pool2d(x, 1), (1, 3, 2, 2), [["a", "b", "c"], [], []]),
        (lambda x: F.interpolate(x, scale_factor=2), (1, 2, 2, 2), [["a", "b"], [], []]),
        (lambda x: torch.stack([x, x], 2), (1, 3), [["a", "b", "c"], []]),
        (lambda x: x[:, :, None].expand(1, 3, 2).reshape(1, 6), (1, 3), [["a", "a", "b", "b", "c", "c"]]),
        (lambda x: torch.special.i0e(x).view(1, 3), (1, 3), [["a", "b", "c"]]),
        (lambda x: torch.fft.fft(x, dim=1).real, (1, 3), [[]]),  # an operation without a rule keeps all
    ],
)
def test_channels_of_single_operations(
    operation: Callable[[Tensor], Tensor], shape: tuple[int, ...], expected: list[list[str]]
) -> None:
    sets = LabelSets()
    x = torch.rand(shape)
    begun = [np.zeros(size, np.int64) for size in shape]
    begun[1] = sets.new(shape[1])
    labels = TensorLabels([(x, begun)], sets)
    with torch.no_grad(), Flow(labels, 60):
        result = operation(x)
    names: dict[int, str] = {}
    for axis, letters in zip(labels.axes(result)[1:], expected, strict=True):
        roots = sets.of(axis).tolist()
        assert len(roots) == len(letters) or not any(roots)
        for root, letter in zip(roots, letters, strict=False):
            assert root and names.setdefault(root, letter) == letter
        assert bool(letters) == any(roots)
    assert len(set(names.values())) == len(names)


def test_what_is_added_is_one_channel_and_what_is_broadcast_is_not() -> None:
    (_, total), (_, one), (other,) = followed(lambda a, b: a + b, torch.rand(2, 3), torch.rand(3))
    assert (total == one).all() and (one == other).all()
    (_, total), (_, one), (_, other) = followed(lambda a, b: a * b, torch.rand(2, 3), torch.rand(2, 1))
    assert (total == one).all() and not other.any() and len(set(one.tolist())) == 3


def test_a_product_joins_what_it_sums_over() -> None:
    (rows, columns), (left, inner), (other, right) = followed(torch.mm, torch.rand(2, 3), torch.rand(3, 4))
    assert (inner == other).all() and (rows == left).all() and (columns == right).all()


@pytest.mark.parametrize(("groups", "outputs", "units"), [(1, 4, 4 + 6), (2, 4, 2 + 3), (6, 6, 6), (6, 12, 6)])
@pytest.mark.parametrize("transposed", [False, True])
def test_channels_of_a_convolution(groups: int, outputs: int, units: int, transposed: bool) -> None:
    x, bias = torch.rand(1, 6, 4, 4), torch.rand(outputs)
    weight = torch.rand(6, outputs // groups, 2, 2) if transposed else torch.rand(outputs, 6 // groups, 2, 2)
    convolve = F.conv_transpose2d if transposed else F.conv2d

    result, own, _, biases = followed(lambda *args: convolve(*args, groups=groups), x, weight, bias)
    assert (result[1] == biases[0]).all()
    channels = set(own[1].tolist()) | set(result[1].tolist())
    if transposed and 1 < groups < 6:  # its inputs and outputs are one channel of each block
        units = 3 + 2
    assert len(channels - {0}) == units


def test_an_axis_is_cut_into_blocks_or_into_places_in_them() -> None:
    cut = lambda x: x.view(2, 3, 2)  # noqa: E731
    (_, blocks, inner), (_, own) = followed(cut, torch.rand(2, 6))
    assert own.tolist() == np.repeat(blocks, 2).tolist() and not inner.any() and len(set(blocks.tolist())) == 3
    (_, blocks, inner), (_, own) = followed(cut, torch.rand(2, 6), parts={1: 1})
    assert own.tolist() == np.tile(inner, 3).tolist() and not blocks.any() and len(set(inner.tolist())) == 2


def test_reasons_say_which_operation_keeps_a_channel() -> None:
    sets = LabelSets()
    x = torch.rand(1, 3)
    begun = [np.zeros(1, np.int64), sets.new(3)]
    labels = TensorLabels([(x, begun)], sets)
    mode = Flow(labels, 60)
    mode.place = "block.3"
    with torch.no_grad(), mode:
        x.roll(1, 1)
    assert sets.reason(int(begun[1][2])) == "roll in layer 'block.3'"
