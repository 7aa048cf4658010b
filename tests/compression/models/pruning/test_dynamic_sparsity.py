"""Which weights a sparse model has: how many of each layer, which, and when; scores before anything is trained."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.models.pruning import dynamic_sparsity
from fedpress.compression.models.pruning.dynamic_sparsity import AtInitialization, LayerCollapse
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Mask

LAYOUT = Layout(
    (
        TensorSpec("conv", (8, 1, 3, 3), "float32"),
        TensorSpec("bias", (8,), "float32"),
        TensorSpec("hidden", (40, 72), "float32"),
        TensorSpec("head", (10, 40), "float32"),
    )
)
densities = st.floats(0.02, 1)


def left(mask: Mask, layout: Layout = LAYOUT) -> list[int]:
    return np.diff(layout.within(mask).offsets).tolist()


@given(densities)
def test_erk_densities_are_those_of_the_paper(density: float) -> None:
    found = dynamic_sparsity.erk_densities(LAYOUT, density)
    sizes = np.array([72, 2880, 400])
    own = np.array([found[0], found[2], found[3]])
    assert found[1] == 1 and (own <= 1).all()
    assert own @ sizes == pytest.approx(density * sizes.sum())
    raw = np.array([(8 + 1 + 3 + 3) / 72, (40 + 72) / 2880, (10 + 40) / 400])
    sparse = own < 1
    np.testing.assert_allclose((own / raw)[sparse], (own / raw)[sparse].max(initial=0))  # one factor for all of them
    assert (
        raw[~sparse] * (own / raw)[sparse].max(initial=np.inf if sparse.all() else 0) >= 1 - 1e-9
    ).all() or not sparse.any()


@given(densities, st.integers(0, 99), st.sampled_from(["global", "layer", "erk"]))
def test_a_ranked_mask_has_its_density_and_the_largest(density: float, seed: int, scope: Any) -> None:
    scores = np.random.default_rng(seed).standard_normal(LAYOUT.size)
    try:
        mask = dynamic_sparsity.ranked(scores, LAYOUT, density, scope)
    except LayerCollapse:
        assert scope == "global" and density < 0.2
        return
    assert left(mask)[1] == 8  # biases stay
    assert dynamic_sparsity.density(mask, LAYOUT) == pytest.approx(density, abs=3 / 3352)
    if scope != "global":
        assert left(mask) == dynamic_sparsity.counts(LAYOUT, density, scope)
    for start, stop in zip(LAYOUT.offsets[:-1], LAYOUT.offsets[1:], strict=True):
        there = mask.flags[start:stop]
        assert scores[start:stop][there].min(initial=np.inf) >= scores[start:stop][~there].max(initial=-np.inf)


def test_ties_go_by_place_and_nan_is_refused() -> None:
    mask = dynamic_sparsity.ranked(np.zeros(LAYOUT.size), LAYOUT, 0.1, "layer")
    assert mask.positions[:7].tolist() == list(range(7))
    with pytest.raises(ValueError, match="a score is NaN"):
        dynamic_sparsity.ranked(np.full(LAYOUT.size, np.nan), LAYOUT, 0.1, "layer")


def test_a_layer_that_would_be_lost_is_named() -> None:
    scores = np.ones(LAYOUT.size)
    scores[LAYOUT.offsets[3] :] = 0
    with pytest.raises(LayerCollapse, match="nothing would be left of head"):
        dynamic_sparsity.ranked(scores, LAYOUT, 0.5, "global")


@given(st.integers(0, 60), densities)
def test_the_cubic_schedule_falls_from_one_to_its_end(begin: int, density: float) -> None:
    found = [dynamic_sparsity.cubic_density(number, begin, begin + 20, density) for number in range(begin + 30)]
    assert found[begin] == 1 and found[begin + 20 :] == pytest.approx([density] * 10)
    assert all(later <= earlier for earlier, later in zip(found, found[1:], strict=False))


@given(st.floats(0.1, 0.9), st.floats(0, 0.5), st.integers(0, 99))
def test_drop_and_grow_is_rigl_by_hand(density: float, part: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    before = dynamic_sparsity.random_mask(LAYOUT, density, seed)
    layout = LAYOUT.within(before)
    weights, gradient = draw.standard_normal(layout.size), draw.standard_normal(LAYOUT.size)
    weights, gradient = weights.astype(np.float32), gradient.astype(np.float32)
    after = dynamic_sparsity.drop_and_grow(weights, gradient, layout, part, part)
    assert left(after) == left(before)
    whole = np.zeros(LAYOUT.size)
    whole[before.flags] = weights
    changed = dynamic_sparsity.changes(layout, part)
    for number, (start, stop) in enumerate(zip(LAYOUT.offsets[:-1], LAYOUT.offsets[1:], strict=True)):
        old, new = before.flags[start:stop], after.flags[start:stop]
        dropped, grown = old & ~new, new & ~old
        assert dropped.sum() == grown.sum() == changed[number]
        size, slope = np.abs(whole[start:stop]), np.abs(gradient[start:stop])
        assert size[dropped].max(initial=0) <= size[old & new].min(initial=np.inf)
        assert slope[grown].min(initial=np.inf) >= slope[~old & ~new].max(initial=0)
    with pytest.raises(ValueError, match="needs a model with a mask"):
        dynamic_sparsity.drop_and_grow(weights, gradient, LAYOUT, part, part)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"method": "luck"}, "method: got .*, expected 'snip'"),
        ({"density": 0.0}, "density: got .*, expected"),
        ({"density": 1.5}, "density: got .*, expected"),
        ({"scope": "galaxy"}, "scope: got .*, expected 'global'"),
        ({"method": "erk", "scope": "global"}, "densities are by layer"),
        ({"steps": 0}, "steps: got .*, expected greater"),
        ({"temperature": 0.0}, "temperature: got .*, expected greater"),
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        AtInitialization(**bad)
