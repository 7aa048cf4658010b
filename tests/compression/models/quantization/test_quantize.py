"""The settings, and what `quantize` does to a model: what is left alone, what is refused."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from fedpress.compression.errors import NonFiniteError
from fedpress.compression.models.quantization import quantize
from fedpress.compression.models.quantization.quantized_tensor import Quantized
from fedpress.compression.models.quantization.settings import Quantization


def test_only_float_tensors_of_two_dimensions_are_quantized() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    tensors = quantize.quantize(model)
    assert {name for name, tensor in tensors.items() if isinstance(tensor, Quantized)} == {"0.weight", "3.weight"}
    assert tensors["1.num_batches_tracked"].dtype == np.int64
    assert tensors["1.running_var"].dtype == np.float32


def test_a_quantized_copy_answers_nearly_alike_and_the_model_is_untouched() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = torch.randn(50, 20)

    errors = [
        (quantize.quantized_copy(model, Quantization(bits=bits))(inputs) - model(inputs)).abs().max()
        for bits in (8, 6, 4, 2)
    ]

    assert 0 < errors[0] < 0.02 and errors == sorted(errors)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_biases_are_rounded_to_float16_where_that_loses_nothing_else() -> None:
    model = nn.Linear(2, 3)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([0.1, -3.0, 0.0]))
    bias: Any = quantize.quantize(model)["bias"]
    assert bias.tolist() == [np.float16(0.1), -3.0, 0.0] and bias.dtype == np.float32
    for beyond in (1e6, 1e-7):
        with torch.no_grad():
            model.bias[0] = beyond
        kept: Any = quantize.quantize(model)["bias"]
        assert kept[0] == np.float32(beyond)


def test_half_precision_is_restored_to_itself() -> None:
    model = nn.Linear(4, 3).half()
    assert quantize.quantized_copy(model).weight.dtype == torch.float16


def test_sparsity_takes_the_smallest_weights_of_the_whole_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
    with torch.no_grad():
        model[1].weight *= 10  # so most of the small ones are in the first layer
    copied = quantize.quantized_copy(model, Quantization(sparsity=0.6))
    pairs = [(model[i].weight, copied[i].weight) for i in (0, 1)]
    kept = torch.cat([old[new != 0].abs() for old, new in pairs])
    gone = torch.cat([old[new == 0].abs() for old, new in pairs])
    assert len(gone) == 180 and gone.max() <= kept.min()
    assert (pairs[0][1] == 0).float().mean() > 0.8 > (pairs[1][1] == 0).float().mean()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_nan_and_infinity_are_refused(bad: float, name: str) -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.get_parameter(name)[0] = bad
    with pytest.raises(NonFiniteError, match=name):
        quantize.quantize(layer)


@pytest.mark.parametrize("rounding", ["adaround", "gptq"])
def test_rounding_by_data_without_calibration_is_refused(rounding: Literal["adaround", "gptq"]) -> None:
    for calibration in (None, torch.zeros(0, 3)):
        with pytest.raises(ValueError, match=f"{rounding} needs calibration inputs"):
            quantize.quantize(nn.Linear(3, 2), Quantization(rounding=rounding), calibration)


def test_gptq_takes_inputs_by_name_and_zeros_stay_zero() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 5)

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.layer(given)
            return output

    torch.manual_seed(0)
    model, inputs = Named(), torch.randn(40, 3) @ torch.randn(3, 12)
    wanted = model(inputs).detach()
    for sparsity in (0.0, 0.5):
        near, by_data = (
            quantize.quantize(model, Quantization(bits=4, sparsity=sparsity, rounding=rounding), {"given": inputs})
            for rounding in ("nearest", "gptq")
        )
        errors = [
            float((quantize.applied(model, tensors)(inputs) - wanted).square().mean().detach())
            for tensors in (near, by_data)
        ]
        assert errors[1] < errors[0]
        codes = by_data["layer.weight"].codes
        assert (codes == 0).sum() >= round(sparsity * codes.size)
