"""Shapes that are not those of a pruned version of the model are refused before anything changes."""

import pytest
import torch
from torch import nn

from fedpress.compression.models import architecture
from fedpress.compression.models.architecture import ArchitectureError, Shape, UnsupportedLayer
from fedpress.compression.models.attention import SelfAttention


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4), nn.LSTM(4, 4))


def pruned(**changes: Shape) -> dict[str, Shape]:
    shapes = architecture.shapes(model())
    for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        shapes[name] = (5,)
    shapes |= {"0.weight": (5, 2, 3, 3), "3.weight": (4, 5)}
    return shapes | {name.replace("__", "."): shape for name, shape in changes.items()}


def test_a_model_is_cut_to_its_shapes() -> None:
    cut = model()
    architecture.shrink(cut, pruned())
    assert architecture.shapes(cut) == pruned()
    assert "Conv2d(2, 5" in repr(cut) and "BatchNorm2d(5" in repr(cut) and "in_features=5" in repr(cut)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (pruned(other=(1,)), r"no tensor \['other'\]"),
        ({name: shape for name, shape in pruned().items() if name != "0.bias"}, r"no shape for \['0.bias'\]"),
        (pruned(**{"0__weight": (9, 2, 3, 3)}), "at most the model's"),  # grows: would allocate what it likes
        (pruned(**{"0__weight": (0, 2, 3, 3)}), "at least 1"),
        (pruned(**{"0__weight": (-5, 2, 3, 3)}), "at least 1"),
        (pruned(**{"0__weight": (5, 2, 9)}), "as many dimensions"),
        (pruned(**{"0__weight": (5, 2, 2, 3)}), r"kernel \(2, 3\), expected \(3, 3\)"),
        (pruned(**{"0__bias": (4,)}), r"bias \(4,\) does not fit weight"),
        (pruned(**{"1__running_var": (4,)}), r"running_var \(4,\) does not fit"),
    ],
)
def test_other_shapes_are_refused(shapes: dict[str, Shape], message: str) -> None:
    whole = model()
    with pytest.raises(ArchitectureError, match=message):
        architecture.shrink(whole, shapes)
    assert architecture.shapes(whole) == architecture.shapes(model())


def test_groups_that_would_not_be_equal_are_refused() -> None:
    grouped = nn.Sequential(nn.Conv2d(4, 8, 1, groups=2), nn.GroupNorm(2, 8))
    shapes = architecture.shapes(grouped)
    with pytest.raises(ArchitectureError, match="7 channels cannot be cut into 2 groups"):
        architecture.shrink(grouped, shapes | {"0.weight": (7, 2, 1, 1), "0.bias": (7,)})
    with pytest.raises(ArchitectureError, match="5 channels cannot be cut into 2 groups"):
        architecture.shrink(grouped, shapes | {"1.weight": (5,), "1.bias": (5,)})


def test_a_layer_of_another_kind_cannot_change() -> None:
    with pytest.raises(UnsupportedLayer, match="layer '4' is a LSTM"):
        architecture.shrink(model(), pruned(**{"4__weight_ih_l0": (12, 4)}))


def test_transposed_and_other_layers_follow_their_tensors() -> None:
    whole = nn.Sequential(
        nn.ConvTranspose2d(4, 8, 3), nn.PReLU(8), nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(2, 8)
    )
    shapes = {"0.weight": (3, 6, 3, 3), "0.bias": (6,)}
    shapes |= {f"{layer}.{key}": (6,) for layer in (2, 3) for key in ("weight", "bias")} | {"1.weight": (6,)}
    architecture.shrink(whole, shapes)
    assert whole(torch.zeros(1, 3, 5, 5)).shape == (1, 6, 7, 7)
    expected = nn.Sequential(
        nn.ConvTranspose2d(3, 6, 3), nn.PReLU(6), nn.InstanceNorm2d(6, affine=True), nn.GroupNorm(2, 6)
    )
    assert repr(whole) == repr(expected)


class Extra(nn.Linear):
    def get_extra_state(self) -> object:
        return "anything"

    def set_extra_state(self, state: object) -> None: ...


def test_state_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(UnsupportedLayer, match="_extra_state.*is a str"):
        architecture.shapes(Extra(1, 1))


def test_attention_keeps_whole_heads_and_counts_them() -> None:
    fewer = {"qkv.weight": (12, 8), "qkv.bias": (12,), "out.weight": (8, 4)}
    attention = SelfAttention(8, 2)
    architecture.shrink(attention, architecture.shapes(attention) | fewer)
    assert attention.heads == 1 and attention(torch.zeros(1, 3, 8)).shape == (1, 3, 8)


@pytest.mark.parametrize(("rows", "columns"), [(12, 8), (9, 3)])
def test_attention_without_whole_heads_is_refused(rows: int, columns: int) -> None:
    attention = SelfAttention(8, 2)
    shapes = architecture.shapes(attention)
    with pytest.raises(ArchitectureError, match="whole heads of 4"):
        architecture.shrink(
            attention, shapes | {"qkv.weight": (rows, 8), "qkv.bias": (rows,), "out.weight": (8, columns)}
        )
    assert architecture.shapes(attention) == shapes
