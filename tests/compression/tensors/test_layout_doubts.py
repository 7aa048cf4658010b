"""Doubts: what is tied or a running statistic is found, whatever its name; what is neither raises none."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.layout_doubts import SMALL, doubts

Arrays = Mapping[str, NDArray[Any]]


def of(arrays: Arrays) -> list[str]:
    return doubts(arrays, Layout.of_arrays(arrays))


def numbered(model: nn.Module, *, counters: bool = True) -> Arrays:
    """Return a model's arrays as the NumPy clients of Flower's examples send them."""
    values = [tensor.numpy() for tensor in model.state_dict().values()]
    return {str(index): value for index, value in enumerate(v for v in values if counters or v.dtype.kind == "f")}


def named(model: nn.Module) -> Arrays:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def network(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(20, 30), norm(30), nn.ReLU(), nn.Linear(30, 30), norm(30), nn.Linear(30, 4))


@pytest.mark.parametrize("counters", [True, False], ids=["as torch has them", "as Keras has them"])
def test_running_statistics_without_names_are_found(counters: bool) -> None:
    arrays = numbered(network(nn.BatchNorm1d), counters=counters)
    (doubt,) = of(arrays)
    step = 5 if counters else 4
    expected = [str(index) for first in (2, 2 + step + 2) for index in (first + 2, first + 3)]
    assert f"buffers={expected}" in doubt
    layout = Layout.of_arrays(arrays, buffers=expected)
    assert [spec.name for spec in layout.buffers if spec.dtype == "float32"] == expected
    assert doubts(arrays, layout) == []


def test_running_statistics_without_names_are_found_after_training_too() -> None:
    model, draw = network(nn.BatchNorm1d), np.random.default_rng(1)
    for value in model.state_dict().values():
        if value.dtype.is_floating_point:
            value.copy_(value.new_tensor(draw.uniform(0.1, 2, value.shape)))
    (doubt,) = of(numbered(model, counters=False))
    assert "buffers=['4', '5', '10', '11']" in doubt


@pytest.mark.parametrize(
    "model",
    [network(nn.LayerNorm), nn.LSTM(8, 20), nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 4)), nn.GRU(5, 9, 2)],
    ids=["layer norm", "LSTM", "linear", "GRU of two layers"],
)
def test_models_without_statistics_raise_no_doubt(model: nn.Module) -> None:
    assert of(numbered(model)) == []
    assert of(named(model)) == []


@pytest.mark.parametrize(
    "name",
    ["bn.mean", "norm/var", "observer.min_val", "ema_0", "encoder.running_max", "normalizer/variance:0", "stats.avg"],
)
def test_unusual_names_of_statistics_are_found(name: str) -> None:
    arrays = {"weight": np.ones((20, 20), np.float32), name: np.zeros(3, np.float32)}
    (doubt,) = of(arrays)
    assert repr(name) in doubt and f"buffers={[name]}" in doubt
    assert doubts(arrays, Layout.of_arrays(arrays, buffers=[name])) == []


@pytest.mark.parametrize(
    "name", ["fc_mean.weight", "log_std", "logvar", "mean_head.bias", "variation", "meander", "scale"]
)
def test_names_of_weights_raise_no_doubt(name: str) -> None:
    assert of({"weight": np.ones((20, 20), np.float32), name: np.zeros(3, np.float32)}) == []


@given(
    seed=st.integers(0, 2**32), dtype=st.sampled_from(["float16", "float32"]), shape=st.sampled_from([(2,), (9, 30)])
)
def test_equal_arrays_are_found_and_equal_constants_are_not(seed: int, dtype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(seed).normal(size=shape).astype(dtype)
    arrays = {
        "body": np.ones((20, 20), np.float32),
        "embedding": values,
        "bias": np.zeros(shape, dtype),
        "other bias": np.zeros(shape, dtype),
        "head": values.copy(),
        "transposed": values.T.copy() if len(shape) == 2 else values[::-1].copy(),
        "another": values + np.asarray(1, dtype),
    }
    (doubt,) = of(arrays)
    assert "'head' and 'embedding' hold the same values." in doubt and "tied=[('head', 'embedding')]" in doubt
    tied = Layout.of_arrays(arrays, tied=[("head", "embedding")])
    assert doubts(arrays, tied) == [] and tied.size == Layout.of_arrays(arrays).size - values.size


def test_a_model_that_is_too_small_is_told_once() -> None:
    (doubt,) = of({"coef": np.ones((1, 14), np.float32), "intercept": np.ones(1, np.float32)})
    assert "15 weights, 60 bytes" in doubt and "cannot pay" in doubt
    assert of({"coef": np.ones(SMALL, np.float32)}) == []


def test_float64_is_said_to_be_sent_as_float32() -> None:
    (doubt,) = of({"coef": np.ones((10, 64)), "intercept": np.ones(10, np.float32)})
    assert "1 arrays are float64 ('coef')" in doubt
