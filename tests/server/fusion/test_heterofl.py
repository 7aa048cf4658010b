"""Models that are slices of one another: where their weights are, and the mean over those who have them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpress.compression.errors import LayoutError
from fedpress.compression.tensors import flatten
from fedpress.compression.tensors.layout import Layout
from fedpress.server.fusion import heterofl
from fedpress.server.fusion.heterofl import ModelSlice


def network(channels: int, hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * channels, hidden), nn.ReLU(),
        nn.Linear(hidden, 3),
    )  # fmt: skip


@given(st.integers(1, 6), st.integers(1, 7))
def test_a_slice_is_where_its_positions_are(channels: int, hidden: int) -> None:
    whole, part = network(6, 7), network(channels, hidden)
    full = whole.state_dict()
    part.load_state_dict({name: full[name][heterofl.leading(t.shape)] for name, t in part.state_dict().items()})
    layouts = Layout.of(whole), Layout.of(part)
    flat = [
        flatten.flatten({name: t.numpy() for name, t in model.state_dict().items()}, layout)
        for model, layout in zip((whole, part), layouts, strict=True)
    ]
    np.testing.assert_array_equal(flat[0][heterofl.positions(layouts[1], layouts[0])], flat[1])
    # Leading channels before a flatten are leading columns after it: with the rest of the channels at zero, the whole
    # model's first hidden neurons see what the slice's see.
    image = torch.randn(2, 1, 4, 4)
    with torch.no_grad():
        zeroed = network(6, 7)
        zeroed.load_state_dict(full)
        zeroed[0].weight[channels:], zeroed[0].bias[channels:] = 0, 0  # type: ignore[operator]
        torch.testing.assert_close(zeroed[:4](image)[:, :hidden], part[:4](image))  # type: ignore[index]


@given(
    st.lists(st.floats(0.5, 1000), min_size=1, max_size=4),
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
)
def test_the_mean_of_whole_models_is_their_weighted_mean(weights: list[float], size: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    masters = draw.normal(size=(len(weights), size)).astype(np.float32)
    parts = [ModelSlice(np.arange(size), master, weight) for master, weight in zip(masters, weights, strict=True)]
    found = heterofl.mean(np.zeros(size, np.float32), parts)
    np.testing.assert_allclose(found, np.average(masters.astype(np.float64), axis=0, weights=weights), atol=1e-6)


def test_who_has_a_weight_decides_and_nobody_leaves_it() -> None:
    whole = np.float32([1, 2, 3, 4])
    parts = [
        ModelSlice(np.array([0, 1, 2]), np.float32([10, 20, 30]), 1.0),
        ModelSlice(np.array([0]), np.float32([50]), 3.0),
        ModelSlice(np.array([0, 3]), np.float32([99, 99]), 0.0),  # its clients all failed
    ]
    assert heterofl.mean(whole, parts).tolist() == [40, 20, 30, 4]


def test_what_is_no_slice_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"'0.weight' \(7, 1, 3, 3\) is no slice of '0.weight' \(6, 1, 3, 3\)"):
        heterofl.positions(Layout.of(network(7, 2)), Layout.of(network(6, 7)))
    normed = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(LayoutError, match="have no buffers, such as running means; this one has '1.running_mean'"):
        heterofl.positions(Layout.of(normed), Layout.of(normed))
