"""Which weights a sparse model has: how many of each layer, which, and when; scores before anything is trained."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpress.compression.models.pruning import at_initialization, dynamic_sparsity
from fedpress.compression.models.pruning.dynamic_sparsity import AtInitialization, LayerCollapse
from fedpress.compression.models.task import Examples
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


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8, 40)
        self.head = nn.Linear(40, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out = torch.relu(self.norm(self.conv(inputs))).mean(dim=(2, 3))
        return self.head(torch.tanh(self.hidden(out)))  # type: ignore[no-any-return]


def net() -> Net:
    torch.manual_seed(3)
    return Net()


def some(count: int = 40) -> Examples:
    torch.manual_seed(4)
    inputs = torch.randn(count, 1, 6, 6)
    return Examples(inputs, (4 * torch.rand(count)).long())


@pytest.mark.parametrize("method", get_args(dynamic_sparsity.Method))
def test_every_method_leaves_its_density_and_the_model_alone(method: Any) -> None:
    model = net()
    layout, before = Layout.of(model), {name: t.clone() for name, t in model.state_dict().items()}
    settings_ = AtInitialization(method, density=0.25, scope="layer" if method == "magnitude" else None, steps=10)
    one, again = (
        at_initialization.initial_mask(model, layout, settings_, nn.functional.cross_entropy, some(), seed=7)
        for _ in range(2)
    )
    assert one == again
    assert dynamic_sparsity.density(one, layout) == pytest.approx(0.25, abs=0.01)
    assert all(left(one, layout))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_snip_and_grasp_are_what_finite_differences_say() -> None:
    """A linear model in float64: |w g|, and w (H g), where H g is the change of the gradient along the gradient."""
    torch.manual_seed(1)
    model = nn.Linear(5, 3).double()
    examples = Examples(torch.randn(20, 5, dtype=torch.float64), torch.randint(3, (20,)))
    layout, loss = Layout.of(model), nn.functional.cross_entropy

    def gradient(moved: float = 0.0, along: list[torch.Tensor] | None = None, heat: float = 1.0) -> list[torch.Tensor]:
        shifted = [p.detach() + moved * a for p, a in zip(model.parameters(), along or model.parameters(), strict=True)]
        leaves = [one.detach().requires_grad_() for one in shifted]
        value = loss((examples.inputs @ leaves[0].T + leaves[1]) / heat, examples.targets)
        return list(torch.autograd.grad(value, leaves))

    weights = [p.detach() for p in model.parameters()]
    for batch in (7, 20):
        for found, w, g in zip(
            at_initialization.snip(model, layout, loss, examples, batch), weights, gradient(), strict=True
        ):
            torch.testing.assert_close(found, (w * g).abs())
    g = gradient(heat=2.0)
    ahead, behind = gradient(1e-4, g, 2.0), gradient(-1e-4, g, 2.0)
    for found, w, a, b in zip(
        at_initialization.grasp(model, layout, loss, examples, 20, 2.0), weights, ahead, behind, strict=True
    ):
        torch.testing.assert_close(found, w * (a - b) / 2e-4, rtol=1e-4, atol=1e-8)


def test_synflow_conserves_the_flow_of_each_layer() -> None:
    """Tanaka et al. 2020, theorem 2: layers in a row have the same sum of scores; and it needs no label."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)
    )
    model = model.double()
    for parameter in model.parameters():
        parameter.data.abs_()
    scores = at_initialization.synflow(model, Layout.of(model), torch.ones(1, 6, dtype=torch.float64))
    totals = [float(score.sum()) for score in scores]
    assert totals == pytest.approx([totals[0]] * 3)


def test_synflow_keeps_a_thin_layer_that_one_shot_of_magnitudes_loses() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(30, 300), nn.ReLU(), nn.Linear(300, 3), nn.ReLU(), nn.Linear(3, 10))
    with torch.no_grad():
        model[4].weight.mul_(1e-3)  # type: ignore[operator]
    layout, examples = Layout.of(model), Examples(torch.randn(4, 30), torch.zeros(4, dtype=torch.int64))

    def mask(method: Any) -> Mask:
        settings_ = AtInitialization(method, density=0.05)
        return at_initialization.initial_mask(model, layout, settings_, nn.functional.cross_entropy, examples, 1)

    with pytest.raises(LayerCollapse, match=r"4\.weight"):
        mask("magnitude")
    assert left(mask("synflow"), layout)[4] > 0


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"method": "luck"}, "method\: got .*, expected 'snip'"),
        ({"density": 0.0}, "density: got .*, expected"),
        ({"density": 1.5}, "density: got .*, expected"),
        ({"scope": "galaxy"}, "scope\: got .*, expected 'global'"),
        ({"method": "erk", "scope": "global"}, "densities are by layer"),
        ({"steps": 0}, "steps\: got .*, expected greater"),
        ({"temperature": 0.0}, "temperature\: got .*, expected greater"),
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        AtInitialization(**bad)


def test_no_examples_are_refused() -> None:
    empty = Examples(torch.zeros(0, 1, 6, 6), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one example"):
        at_initialization.initial_mask(
            net(), Layout.of(net()), AtInitialization(), nn.functional.cross_entropy, empty, 1
        )
