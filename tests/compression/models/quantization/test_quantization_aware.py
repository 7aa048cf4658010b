"""Training that knows of the quantization: gradients, learned scales, masks; and that it pays."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from fedpress.compression.models.distillation import distill
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.quantization import quantization_aware, quantize, quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Quantized
from fedpress.compression.models.quantization.settings import Quantization


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 30), nn.ReLU(), nn.Linear(30, 5))


INPUTS = torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("group", [0, 7])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_prepared_model_answers_as_it_will_once_quantized(bits: int, group: int) -> None:
    model = net()
    learner = quantization_aware.prepare(model, bits, group)
    settings = Quantization(bits=bits, group_size=group, scale="least-squares")
    expected = quantize.quantized_copy(model, settings)
    with torch.no_grad():
        for bias in (learner[0].bias, learner[3].bias, learner[5].bias):
            bias.copy_(bias.half().float())  # which `quantize` rounds as well
    torch.testing.assert_close(learner(INPUTS), expected(INPUTS), rtol=1e-5, atol=1e-5)
    one, other = quantize.quantize(learner, settings), quantize.quantize(model, settings)
    for name, tensor in other.items():
        found = one[name]
        if isinstance(tensor, Quantized):
            assert isinstance(found, Quantized)
            np.testing.assert_array_equal(found.codes, tensor.codes)
            np.testing.assert_array_equal(found.scales, tensor.scales)


def test_gradients_are_those_of_the_papers() -> None:
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.6, -1.9, 9.0]]))
    rounding = quantization_aware.FakeQuantization(layer.weight, 3, 0, False)
    with torch.no_grad():
        rounding.logarithms.zero_()  # a scale of 1, codes -3 to 3
    rounding(layer.weight).sum().backward()
    assert layer.weight.grad is not None and rounding.logarithms.grad is not None
    assert layer.weight.grad.tolist() == [[1, 1, 0]]  # straight through, but for what is cut off
    # Equation 3 of LSQ: round(w/s) - w/s within, the largest code beyond; times ln 2 for the logarithm.
    expected = (1 - 0.6) + (-2 + 1.9) + 3
    torch.testing.assert_close(rounding.logarithms.grad, torch.tensor([[expected * np.log(2)]], dtype=torch.float32))


def test_any_training_loop_takes_it_and_learns_weights_and_scales() -> None:
    teacher, student = net(), quantization_aware.prepare(net(), 3)
    learned = distill.distill(teacher, student, INPUTS, Distillation(epochs=3), seed=0)
    for old, new in zip(student.parameters(), learned.parameters(), strict=True):
        assert not torch.equal(old, new)
    plain, scales = quantization_aware.finish(learned)
    assert scales.keys() == {"0.weight", "3.weight", "5.weight"}
    assert not any(parametrize.is_parametrized(module) for module in plain.modules())
    tensors = quantize.quantize(learned, Quantization(bits=3))
    for name, scale in scales.items():
        tensor = tensors[name]
        assert isinstance(tensor, Quantized)
        np.testing.assert_array_equal(quantized_tensor.restore(tensor), plain.get_parameter(name).detach().numpy())
        np.testing.assert_array_equal(quantized_tensor.powers(quantized_tensor.exponents(scale)), scale)


def test_what_was_learnt_with_the_rounding_loses_less_by_it() -> None:
    teacher = net()
    settings = Distillation(epochs=15)
    plain = distill.distill(teacher, teacher, INPUTS, settings, seed=0)
    learner = distill.distill(teacher, quantization_aware.prepare(teacher, 2), INPUTS, settings, seed=0)
    wanted = teacher(INPUTS).detach()

    def error(model: nn.Module) -> float:
        chosen = Quantization(bits=2, scale="least-squares")
        answers = quantize.applied(model, quantize.quantize(model, chosen))(INPUTS).detach()
        return float((answers - wanted).square().mean())

    assert error(learner) < 0.5 * error(plain)


def test_a_mask_never_grows_back() -> None:
    teacher = net()
    learner = quantization_aware.prepare(teacher, 4, sparsity=0.75)
    before = quantization_aware.finish(learner)[0]
    after = quantization_aware.finish(distill.distill(teacher, learner, INPUTS, Distillation(epochs=3), seed=0))[0]
    gone = torch.cat([old[old == 0] for old in weights(before)])
    assert len(gone) == round(0.75 * sum(weight.numel() for weight in weights(before)))
    for old, new in zip(weights(before), weights(after), strict=True):
        assert (new[old == 0] == 0).all()
    # A student that comes with zeros keeps them, too.
    again = quantization_aware.prepare(before, 4)
    assert all(
        (new[old == 0] == 0).all()
        for old, new in zip(weights(before), weights(quantization_aware.finish(again)[0]), strict=True)
    )


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in model.parameters() if parameter.ndim > 1]


def test_the_model_is_untouched_and_shared_weights_stay_shared() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    before = copy.deepcopy(model.state_dict())
    learner = quantization_aware.prepare(model, 4, sparsity=0.5)
    assert [parametrize.is_parametrized(module) for module in learner] == [True, True, True]
    assert learner[0].parametrizations.weight is learner[1].parametrizations.weight
    plain = quantization_aware.finish(learner)[0]
    assert plain[0].weight is plain[1].weight
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert structural.parameters_of(plain) == structural.parameters_of(model)
    assert quantize.quantize(learner, Quantization(bits=4)).keys() == quantize.quantize(model).keys()
