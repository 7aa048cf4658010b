"""Named arrays as one vector and back: every dtype and shape, and wrong input named."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.tensors import flatten
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Mask

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


def test_flags_are_where_a_masked_vector_is_written() -> None:
    layout = Layout.of_arrays({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float16)})
    masked = layout.within(Mask.at(np.array([1, 5, 6, 9]), 10))
    arrays = flatten.unflatten(np.ones(4, np.float32), masked)
    for name, there in flatten.flags(masked).items():
        np.testing.assert_array_equal(arrays[name] != 0, there)
    assert not flatten.flags(layout)


@pytest.mark.parametrize("mask", [None, Mask.at(np.array([1, 4, 5]), 7)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_a_difference_is_that_of_the_vectors_and_each_array_is_done_with_once(dtype: str, mask: Mask | None) -> None:
    layout = Layout((TensorSpec("a", (2, 2), dtype), TensorSpec("b", (3,), "float32"))).within(mask)
    random = np.random.default_rng(0)
    arrays = {"a": random.normal(size=(2, 2)).astype(dtype).T, "b": random.normal(size=3).astype(np.float32)}
    start = {name: random.normal(size=array.shape).astype(array.dtype) for name, array in arrays.items()}
    expected = flatten.flatten(arrays, layout) - flatten.flatten(start, layout)
    left = dict(arrays)
    update = flatten.difference(left, layout, start, left.pop)
    assert not left and update.tobytes() == expected.tobytes()
    again = np.empty_like(update)
    assert flatten.flatten(arrays, layout, out=again) is again
    assert again.tobytes() == flatten.flatten(arrays, layout).tobytes()
    for name, make in flatten.readers(lambda _, part: again[part], layout).items():
        np.testing.assert_array_equal(make(), flatten.unflatten(again, layout)[name])
