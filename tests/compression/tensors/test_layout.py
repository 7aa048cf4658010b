"""Layouts: what they hold, what they refuse, and a fingerprint that stays the same."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.tensors import buffer_codec, flatten
from fedpress.compression.tensors.layout import Layout, TensorSpec

Arrays = dict[str, NDArray[Any]]


@st.composite
def named_arrays(draw: st.DrawFn) -> Arrays:
    """Parameters of every float dtype and of 0 to 3 dimensions, empty ones included; bfloat16 as bit patterns."""
    arrays: Arrays = {}
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    for index in range(draw(st.integers(0, 5))):
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        dtype = draw(st.sampled_from(["float16", "float32", "float64"]))
        arrays[f"layer.{index}"] = (random.standard_normal(shape) * 100).astype(dtype)
    return arrays


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (lambda: Layout((TensorSpec("a", (), "float32"),) * 2), "more than once in the layout: a"),
        (lambda: Layout((TensorSpec("a", (), "int64"),)), "integers belong among the buffers"),
        (lambda: Layout((TensorSpec("a", (), "complex64"),)), "a complex constant is best left out"),
        (lambda: Layout((), (TensorSpec("a", (), "complex64"),)), "'a' has dtype complex64"),
        (lambda: Layout((), tied=(("a", "b"),)), "'a' is tied to 'b'"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(layout: Any, words: str) -> None:
    with pytest.raises(errors.LayoutError, match=words):
        layout()


WEIGHT = Layout((TensorSpec("weight", (2, 3), "float32"),))


def test_the_fingerprint_depends_on_names_shapes_dtypes_and_order_and_on_nothing_else() -> None:
    a, b = TensorSpec("a", (2, 3), "float32"), TensorSpec("b", (6,), "float32")
    layouts = [
        Layout(()),
        Layout((a, b)),
        Layout((b, a)),
        Layout((a._replace(shape=(3, 2)), b)),
        Layout((a._replace(shape=(6,)), b)),
        Layout((a._replace(dtype="float16"), b)),
        Layout((a._replace(name="ab"), b)),
    ]
    assert len({layout.fingerprint for layout in layouts}) == len(layouts)
    same = Layout((a, b), (TensorSpec("c", (), "int64"),), (("d", "a"),))
    assert same.fingerprint == layouts[1].fingerprint


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "from fedpress.compression.tensors.layout import Layout, TensorSpec;"
        "print(Layout((TensorSpec('weight', (2, 3), 'float32'),)).fingerprint)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) == WEIGHT.fingerprint


def test_the_layout_of_a_torch_module() -> None:
    torch = pytest.importorskip("torch")

    class Tied(torch.nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(4, 3)
            self.norm = torch.nn.BatchNorm1d(3)
            self.head = torch.nn.Linear(3, 4)
            self.head.weight = self.embed.weight
            self.scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.bfloat16))
            self.codes = torch.nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
            self.register_buffer("cache", torch.zeros(5), persistent=False)

    model = Tied()
    layout = Layout.of(model)
    assert {spec.name: (spec.shape, spec.dtype) for spec in layout.parameters} == {
        "scale": ((), "bfloat16"),
        "embed.weight": ((4, 3), "float32"),
        "norm.weight": ((3,), "float32"),
        "norm.bias": ((3,), "float32"),
        "head.bias": ((4,), "float32"),
    }
    assert [spec.name for spec in layout.buffers] == [
        "codes",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]
    assert layout.tied == (("head.weight", "embed.weight"),)
    arrays = {
        name: (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
        for name, tensor in model.state_dict().items()
    }
    again = flatten.unflatten(flatten.flatten(arrays, layout), layout) | buffer_codec.unpack(
        buffer_codec.pack(arrays, layout), layout
    )
    assert set(again) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype


def test_both_ways_to_a_layout_agree_on_a_usual_model() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert Layout.of_arrays(arrays) == Layout.of(model)


@pytest.mark.parametrize(
    ("mean", "variance"),
    [
        ("norm.running_mean", "norm.running_var"),
        ("sequential/batch_normalization/moving_mean:0", "sequential/batch_normalization/moving_variance:0"),
        ("batch_normalization_1/moving_mean", "batch_normalization_1/moving_variance"),
        ("batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var"),
        ("batch_stats.BatchNorm_0.mean", "batch_stats.BatchNorm_0.var"),
        ("net/batch_norm/~/mean_ema/average", "net/batch_norm/~/var_ema/average"),
        ("norm._mean", "norm._variance"),
        ("norm.moving_mean", "norm.moving_var"),
    ],
    ids=["PyTorch", "Keras 2", "Keras 3", "Flax", "Flax, dotted", "Haiku", "Paddle", "MXNet"],
)
def test_running_statistics_of_the_usual_frameworks_are_buffers_and_their_variances_are_not_negative(
    mean: str, variance: str
) -> None:
    arrays = {"kernel": np.ones((3, 2), np.float32), mean: -np.ones(2, np.float32), variance: np.ones(2, np.float32)}
    layout = Layout.of_arrays(arrays)
    assert [spec.name for spec in layout.parameters] == ["kernel"]
    assert buffer_codec.unpack(buffer_codec.pack(arrays, layout), layout).keys() == {mean, variance}
    with pytest.raises(errors.NegativeVariance):
        buffer_codec.unpack(buffer_codec.pack({**arrays, variance: -arrays[variance]}, layout), layout)


@pytest.mark.parametrize(
    "name", ["fc_mean.weight", "params/BatchNorm_0/mean_head/kernel", "mean", "var", "log_variance", "removing_mean"]
)
def test_names_that_are_only_like_them_are_parameters(name: str) -> None:
    assert [spec.name for spec in Layout.of_arrays({name: np.ones(2, np.float32)}).parameters] == [name]


def test_names_that_no_array_has_are_refused() -> None:
    with pytest.raises(errors.LayoutError, match="no array has the name 'b'"):
        Layout.of_arrays({"a": np.ones(2, np.float32)}, buffers=["b"])
    with pytest.raises(errors.LayoutError, match="no array has the name 'head'"):
        Layout.of_arrays({"a": np.ones(2, np.float32)}, tied=[("head", "a")])


def test_arrays_that_training_leaves_alone_can_be_named() -> None:
    arrays = {name: np.zeros(2, np.float32) for name in ("base.weight", "base.running_mean", "adapter.a")}
    layout = Layout.of_arrays(arrays, frozen=["base.weight", "base.running_mean"])
    assert [spec.name for spec in layout.parameters] == ["adapter.a"] and not layout.buffers
    assert [spec.name for spec in layout.frozen] == ["base.weight", "base.running_mean"]
    with pytest.raises(errors.LayoutError, match="no array has the name 'bose'"):
        Layout.of_arrays(arrays, frozen=["bose"])
