"""Masks of untrained models: the density asked for, scores as the papers define them, the model left as it is."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from fedpress.compression.models.pruning import at_initialization, dynamic_sparsity
from fedpress.compression.models.pruning.dynamic_sparsity import AtInitialization, LayerCollapse
from fedpress.compression.models.task import Examples
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.mask import Mask


def left(mask: Mask, layout: Layout) -> list[int]:
    return np.diff(layout.within(mask).offsets).tolist()


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


def test_no_examples_are_refused() -> None:
    empty = Examples(torch.zeros(0, 1, 6, 6), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one example"):
        at_initialization.initial_mask(
            net(), Layout.of(net()), AtInitialization(), nn.functional.cross_entropy, empty, 1
        )
