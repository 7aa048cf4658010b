"""AdaRound: within one scale, closer to the layer's answers than rounding to nearest, the same twice."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models import architecture
from fedpress.compression.models.quantization import adaround, quantize, quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Quantized, Tensors
from fedpress.compression.models.quantization.settings import Quantization


class Net(nn.Module):
    """A convolution, two linear layers that share their weight, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3)
        self.one, self.two = nn.Linear(24, 24), nn.Linear(24, 24)
        self.two.weight = self.one.weight
        self.idle = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        answer: Tensor = self.two(torch.relu(self.one(torch.relu(self.conv(inputs)).flatten(1))))
        return answer


def net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    base = torch.randn(80, 3)
    return Net(), (base @ torch.randn(3, 32)).reshape(80, 2, 4, 4)  # correlated inputs, as real ones are


@settings(max_examples=5)
@given(st.integers(2, 8), st.sampled_from([0, 5]), st.integers(0, 5), st.booleans())
def test_the_error_is_at_most_a_scale(bits: int, group: int, seed: int, search: bool) -> None:
    torch.manual_seed(seed)
    layer = nn.Sequential(nn.Linear(12, 4))
    weight = layer[0].weight.detach().numpy()
    scales = quantized_tensor.find_scales(weight, bits, group, search)
    nearest = {
        "0.weight": quantized_tensor.to_nearest(weight, scales, bits, group),
        "0.bias": layer[0].bias.detach().numpy(),
    }
    found = adaround.rounded(layer, nearest, torch.randn(50, 12), steps=20, seed=0)["0.weight"]
    rows = quantized_tensor.grouped(weight, group)
    error = np.abs(rows - quantized_tensor.grouped(quantized_tensor.restore(found), group))
    inside = np.abs(rows) <= quantized_tensor.levels(bits) * scales[..., None]
    assert (error <= scales[..., None] * (1 + 1e-5))[inside].all()
    assert np.abs(found.codes).max() <= quantized_tensor.levels(bits)


@pytest.mark.parametrize("bits", [3, 4])
def test_answers_are_nearer_than_with_rounding_to_nearest(bits: int) -> None:
    _, inputs = net()
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 24))
    wanted = model(inputs).detach()
    nearest = quantize.quantize(model, Quantization(bits=bits))

    def error(tensors: Tensors) -> float:
        return float((quantize.applied(model, tensors)(inputs).detach() - wanted).square().mean())

    found = adaround.rounded(model, nearest, inputs, steps=400, seed=0)
    assert error(nearest | found) < 0.6 * error(nearest)


def test_the_same_seed_gives_the_same_codes_and_the_model_is_untouched() -> None:
    model, inputs = net()
    before = copy.deepcopy(model.state_dict())
    nearest = quantize.quantize(model, Quantization(bits=4))
    one, same, other = (adaround.rounded(model, nearest, inputs, steps=100, seed=seed) for seed in (0, 0, 1))
    assert one.keys() == {"conv.weight", "one.weight"}  # the idle layer has no answers to keep
    assert all(np.array_equal(one[name].codes, same[name].codes) for name in one)
    assert any(not np.array_equal(one[name].codes, other[name].codes) for name in one)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_zeros_stay_zero() -> None:
    model, inputs = net()
    nearest = quantize.quantize(model, Quantization(bits=3, sparsity=0.7))
    architecture.fill(model, quantized_tensor.dequantize(nearest))
    found = adaround.rounded(model, nearest, inputs, steps=50, seed=0)
    for name, tensor in found.items():
        before = nearest[name]
        assert isinstance(before, Quantized) and (tensor.codes[before.codes == 0] == 0).all()
