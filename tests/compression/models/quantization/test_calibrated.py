"""Rounding of whole models by data: nearer answers, nothing else changed, and what stays to nearest is said."""

import copy
import logging

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedpress.compression.models import architecture
from fedpress.compression.models.quantization import calibrated, quantize, quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Quantized
from fedpress.compression.models.quantization.settings import Quantization


class Transposed(nn.Module):
    """y = x W + b with W (inputs, outputs), as GPT-2 stores its layers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5),
            nn.Parameter(torch.zeros(outputs)),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.addmm(self.bias, inputs, self.weight)


class Net(nn.Module):
    """A convolution, layers of both orientations, two that share their weight, one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.transposed = nn.Conv2d(2, 6, 3), Transposed(24, 24)
        self.one, self.two = nn.Linear(24, 24), nn.Linear(24, 24)
        self.two.weight = self.one.weight
        self.idle = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.transposed(torch.relu(self.conv(inputs)).flatten(1))
        answer: Tensor = self.two(torch.relu(self.one(torch.relu(hidden))))
        return answer


def net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    base = torch.randn(80, 3)
    return Net(), (base @ torch.randn(3, 32)).reshape(80, 2, 4, 4)  # correlated inputs, as real ones are


@pytest.mark.parametrize("rounding", ["adaround", "gptq"])
@pytest.mark.parametrize("settings", [Quantization(bits=4), Quantization(bits=3, group_size=5, scale="least-squares")])
def test_answers_are_nearer_and_scales_and_the_model_stay(
    rounding: str, settings: Quantization, caplog: pytest.LogCaptureFixture
) -> None:
    model, inputs = net()
    before = copy.deepcopy(model.state_dict())
    wanted = model(inputs).detach()
    nearest = quantize.quantize(model, settings)
    by_data = quantize.ROUNDINGS[rounding]
    with caplog.at_level(logging.INFO):
        found = calibrated.rounded(model, nearest, inputs, by_data, seed=0)
    assert found.tensors.keys() == {"conv.weight", "transposed.weight", "one.weight"}
    assert found.unreached == ("idle.weight",) and "reaches them: idle.weight" in caplog.text
    assert "80 calibration examples: 3 tensors; to nearest: 0 embeddings, 1 others" in caplog.text

    def error(tensors: quantized_tensor.Tensors) -> float:
        return float((quantize.applied(model, tensors)(inputs).detach() - wanted).square().mean())

    assert error(nearest | found.tensors) < 0.6 * error(nearest)
    for name, tensor in found.tensors.items():
        start = nearest[name]
        assert isinstance(start, Quantized) and (tensor.bits, tensor.group) == (start.bits, start.group)
        assert (tensor.scales[tensor.scales > 0] == start.scales[tensor.scales > 0]).all()
        assert np.abs(tensor.codes).max() <= quantized_tensor.levels(start.bits)
    again = calibrated.rounded(model, nearest, inputs, by_data, seed=0).tensors
    assert all(np.array_equal(tensor.codes, again[name].codes) for name, tensor in found.tensors.items())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("rounding", ["adaround", "gptq"])
def test_pruned_weights_stay_zero(rounding: str) -> None:
    model, inputs = net()
    nearest = quantize.quantize(model, Quantization(bits=3, sparsity=0.7))
    architecture.fill(model, quantized_tensor.dequantize(nearest))
    found = calibrated.rounded(model, nearest, inputs, quantize.ROUNDINGS[rounding], seed=0).tensors
    for name, tensor in found.items():
        before = nearest[name]
        assert isinstance(before, Quantized) and (tensor.codes[before.codes == 0] == 0).all()


def test_embeddings_stay_to_nearest_and_their_use_as_output_layer_with_them(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    embedding, head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Linear(8, 8), head)
    words = torch.randint(0, 9, (20, 4))
    nearest = quantize.quantize(model, Quantization(bits=4))
    with caplog.at_level(logging.WARNING):
        found = calibrated.rounded(model, nearest, words, quantize.ROUNDINGS["gptq"], seed=0)
    assert (found.tensors.keys(), found.looked_up, found.unreached) == ({"1.weight"}, ("0.weight",), ())
    assert not caplog.records
