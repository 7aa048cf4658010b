"""Layouts and flat vectors: every dtype and shape, buffers apart, wrong input named."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
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


@given(named_arrays())
def test_unflatten_undoes_flatten(arrays: Arrays) -> None:
    layout = Layout.of_arrays(arrays)
    flat = flatten.flatten(arrays, layout)
    assert flat.dtype == np.float32 and flat.shape == (layout.size,)
    again = flatten.unflatten(flat, layout)
    assert list(again) == list(arrays)
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype and again[name].shape == array.shape
        np.testing.assert_array_equal(again[name], array.astype(np.float32).astype(array.dtype))


@given(named_arrays())
def test_flat_and_back_and_flat_is_the_same(arrays: Arrays) -> None:
    layout = Layout.of_arrays(arrays)
    flat = flatten.flatten(arrays, layout)
    np.testing.assert_array_equal(flatten.flatten(flatten.unflatten(flat, layout), layout), flat)


def test_tensors_stand_one_after_the_other_row_by_row() -> None:
    arrays: Arrays = {
        "a": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "scalar": np.array(6, np.float64),
        "none": np.empty((0, 3), np.float16),
        "strided": np.repeat(np.arange(7, 11, dtype=np.float32), 2)[::2],
    }
    layout = Layout.of_arrays(arrays)
    assert layout.size == 11 and layout.offsets.tolist() == [0, 6, 7, 7, 11]
    np.testing.assert_array_equal(flatten.flatten(arrays, layout), np.arange(11))


def test_a_vector_that_is_unflattened_is_copied() -> None:
    layout = Layout((TensorSpec("a", (2,), "float32"),))
    flat = np.zeros(2, np.float32)
    flatten.unflatten(flat, layout)["a"][...] = 1
    assert not flat.any()


def test_float64_beyond_float32_becomes_infinite_and_float16_rounds_to_even() -> None:
    layout = Layout((TensorSpec("wide", (2,), "float64"), TensorSpec("half", (3,), "float16")))
    arrays = {"wide": np.array([1e300, 1 + 2.0**-24]), "half": np.zeros(3, np.float16)}
    np.testing.assert_array_equal(flatten.flatten(arrays, layout)[:2], [np.inf, 1])
    halves = flatten.unflatten(np.array([0, 0, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1e6], np.float32), layout)["half"]
    np.testing.assert_array_equal(halves, np.array([1, 1 + 2.0**-9, np.inf], np.float16))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_bfloat16_rounds_as_torch_does(patterns: list[int]) -> None:
    torch = pytest.importorskip("torch")
    flat = np.array(patterns, np.uint32).view(np.float32)
    layout = Layout((TensorSpec("a", flat.shape, "bfloat16"),))
    ours = flatten.unflatten(flat, layout)["a"]
    theirs = torch.from_numpy(flat.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
    number = ~np.isnan(flat)
    assert ours.dtype == np.uint16
    np.testing.assert_array_equal(ours[number], theirs[number])
    again = flatten.flatten({"a": ours}, layout)
    np.testing.assert_array_equal(np.isnan(again), np.isnan(flat))
    np.testing.assert_array_equal(flatten.unflatten(again, layout)["a"], ours)


def test_bfloat16_of_no_dimension_and_of_none() -> None:
    layout = Layout((TensorSpec("scalar", (), "bfloat16"), TensorSpec("none", (0, 2), "bfloat16")))
    arrays: Arrays = {"scalar": np.array(0x3FC0, np.uint16), "none": np.empty((0, 2), np.uint16)}
    flat = flatten.flatten(arrays, layout)
    assert flat.tolist() == [1.5]
    assert flatten.unflatten(flat, layout)["scalar"].tolist() == 0x3FC0


WEIGHT = Layout((TensorSpec("weight", (2, 3), "float32"),))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "'weight' of shape .2, 3. is missing"),
        ({"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(2)}, "the first is 'bias'"),
        (
            {"weight": np.zeros((3, 2), np.float32)},
            r"float32 of shape \(3, 2\), the layout has float32 of shape \(2, 3\)",
        ),
        ({"weight": np.zeros((2, 3))}, "is float64 of shape"),
        ({"weight": np.zeros((2, 3), np.int32)}, "is int32 of shape"),
    ],
)
def test_arrays_that_do_not_fit_are_named(arrays: Arrays, words: str) -> None:
    with pytest.raises(errors.LayoutError, match=words):
        flatten.flatten(arrays, WEIGHT)


@pytest.mark.parametrize("wrong", [np.zeros(5, np.float32), np.zeros(6), np.zeros((2, 3), np.float32)])
def test_a_vector_that_does_not_fit_is_refused(wrong: NDArray[Any]) -> None:
    with pytest.raises(errors.LayoutError, match=r"expected a contiguous float32 vector of shape \(6,\)"):
        flatten.unflatten(wrong, WEIGHT)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (lambda: Layout((TensorSpec("a", (), "float32"),) * 2), "more than once in the layout: a"),
        (lambda: Layout((TensorSpec("a", (), "int64"),)), "integers belong among the buffers"),
        (lambda: Layout((), (TensorSpec("a", (), "complex64"),)), "'a' has dtype complex64"),
        (lambda: Layout((), tied=(("a", "b"),)), "'a' is tied to 'b'"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(layout: Any, words: str) -> None:
    with pytest.raises(errors.LayoutError, match=words):
        layout()


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


BUFFERS = Layout(
    (),
    (
        TensorSpec("bn.running_mean", (2,), "float32"),
        TensorSpec("bn.running_var", (2,), "bfloat16"),
        TensorSpec("bn.num_batches_tracked", (), "int64"),
        TensorSpec("seen", (3,), "bool"),
        TensorSpec("none", (0,), "float64"),
    ),
)


def buffers() -> Arrays:
    return {
        "bn.running_mean": np.array([1, -2], np.float32),
        "bn.running_var": np.array([0x8000, 0x3F80], np.uint16),  # -0 and 1
        "bn.num_batches_tracked": np.array(2**40 + 1),
        "seen": np.array([True, False, True]),
        "none": np.empty(0),
    }


def test_buffers_travel_in_their_own_dtypes() -> None:
    data = buffer_codec.pack(buffers(), BUFFERS)
    assert data.hex(" ") == "00 00 80 3f 00 00 00 c0 00 80 80 3f 01 00 00 00 00 01 00 00 01 00 01"
    again = buffer_codec.unpack(data, BUFFERS)
    for name, array in buffers().items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda data: data[:-1], errors.Truncated),
        (lambda data: data + b"\0", errors.LengthMismatch),
        (lambda data: b"\x00\x00\xc0\x7f" + data[4:], errors.NonFiniteValues),  # a mean of NaN
        (lambda data: data[:8] + b"\x80\x7f" + data[10:], errors.NonFiniteValues),  # a variance of infinity
        (lambda data: data[:8] + b"\x01\x80" + data[10:], errors.NegativeVariance),
    ],
)
def test_each_fault_of_buffers_is_found(change: Any, fault: type[errors.PayloadError]) -> None:
    with pytest.raises(fault):
        buffer_codec.unpack(change(buffer_codec.pack(buffers(), BUFFERS)), BUFFERS)


def test_any_byte_is_a_valid_boolean() -> None:
    data = buffer_codec.pack(buffers(), BUFFERS)
    assert buffer_codec.unpack(data[:-1] + b"\xff", BUFFERS)["seen"].view(np.uint8).tolist() == [1, 0, 1]


def test_buffers_that_are_not_finite_are_not_packed() -> None:
    with pytest.raises(errors.NonFiniteError, match="bn.running_mean"):
        buffer_codec.pack(buffers() | {"bn.running_mean": np.array([np.nan, 0], np.float32)}, BUFFERS)
