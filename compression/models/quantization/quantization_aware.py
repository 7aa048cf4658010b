"""Training that knows of the quantization: weights are rounded in every forward pass, and stay zero where they are.

`prepare` puts the rounding on the weights themselves, as parametrizations, so that any training loop will do; `finish`
takes it off again.

    learner = quantization_aware.prepare(student, bits=4)
    learner = distill.distill(teacher, learner, inputs, seed=0)
    weights = quantize.quantize(learner, Quantization(bits=4))      # by the scales that were learned

The rounding passes gradients on as if it were not there (straight-through estimator: Y. Bengio, N. Leonard,
A. Courville, 2013; B. Jacob et al., "Quantization and Training of Neural Networks", CVPR 2018, section 3), and the
step is learned too: S. Esser et al., "Learned Step Size Quantization", ICLR 2020, equations 1 to 3; its logarithm,
since Adam's steps are of one size for all parameters: S. Jain et al., "Trained Quantization Thresholds", MLSys 2020,
section 3.2.

Weights that are zero stay zero, so that a pruned student stays pruned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedpress.compression import seeds
from fedpress.compression.models.distillation import distill
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.quantization import quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Scales
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.step import Materials, Student


@dataclass(frozen=True)
class QuantizationAware:
    """Step: the student learns with its weights rounded as `quantize.Quantize` will, which then takes its scales.

    Attributes:
        settings: How they are rounded, and for how many epochs.
        distillation: How it learns, but for the epochs.
    """

    settings: Quantization
    distillation: Distillation = Distillation()

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the student whose model is prepared and trained; what it answers is judged once it is quantized."""
        learned = distill.distill(
            materials.teacher,
            prepare_for(student.model, self.settings),
            materials.inputs,
            replace(self.distillation, epochs=self.settings.qat_epochs),
            targets=materials.targets,
            seed=seeds.derive("aware", materials.seed),
        )
        return student.after("", learned)


class FakeQuantization(nn.Module):
    """weights (channels, ...) -> the same, rounded to codes times scales; zero where `mask` is.

    Args:
        weight: As it is now: its zeros stay, its scales are where learning them begins.
        bits, group, search: As for `quantized_tensor.find_scales`.
    """

    mask: Tensor

    def __init__(self, weight: Tensor, bits: int, group: int, search: bool) -> None:
        super().__init__()
        self.largest, self.group = quantized_tensor.levels(bits), group
        scales = quantized_tensor.find_scales(weight.detach().cpu().float().numpy(), bits, group, search)
        self.logarithms = nn.Parameter(torch.from_numpy(np.log2(np.where(scales > 0, scales, 1))))  # (channels, groups)
        self.register_buffer("mask", weight.detach() != 0)

    def scales(self) -> Tensor:
        """float32 (channels, groups): the learned ones, at the nearest power of 2^(1/16); gradients pass."""
        rounded = torch.round(self.logarithms.detach() * quantized_tensor.FINENESS)
        exponents = rounded.long().clamp(quantized_tensor.MIN_EXPONENT, quantized_tensor.MAX_EXPONENT)
        exact = torch.from_numpy(quantized_tensor.powers(exponents.cpu().numpy())).to(self.logarithms.device)
        smooth = torch.exp2(self.logarithms)
        return exact + (smooth - smooth.detach())

    def forward(self, weight: Tensor) -> Tensor:
        scales = self.scales()[..., None]
        rows = (weight * self.mask).flatten(1)
        length = rows.shape[1]
        if self.group:
            rows = nn.functional.pad(rows, (0, scales.shape[1] * self.group - length))
        steps = (rows.reshape(len(rows), scales.shape[1], -1) / scales).clamp(-self.largest, self.largest)
        codes = steps + (torch.round(steps) - steps).detach()
        return (codes * scales).flatten(1)[:, :length].reshape(weight.shape)


def prepare(model: nn.Module, bits: int, group: int = 0, *, search: bool = True, sparsity: float = 0.0) -> nn.Module:
    """Return a copy of the model whose weights are rounded whenever they are used.

    It trains as any model does, with the scales as further parameters. Weights of two and more dimensions are rounded.

    Args:
        model: Untouched.
        bits, group, search: As for `quantized_tensor.find_scales`: where learning the scales begins.
        sparsity: Part of the weights that is set to zero first, as `sparsify` does.
    """
    copied = copy.deepcopy(model)
    if sparsity:
        sparsify(copied, sparsity)
    chains: dict[int, nn.Module] = {}  # by weight: what two layers share stays shared
    for module, name, weight in list(_weights(copied)):
        parametrize.register_parametrization(module, name, FakeQuantization(weight, bits, group, search))
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        parametrizations[name] = chains.setdefault(id(weight), parametrizations[name])
    return copied


def prepare_for(model: nn.Module, settings: Quantization) -> nn.Module:
    """Return a copy of the model to train on, whose weights are rounded as `quantize.quantize` will with the settings.

    Args:
        model: Untouched.
        settings: How.
    """
    search = settings.scale == "least-squares"
    return prepare(model, settings.bits, settings.group_size, search=search, sparsity=settings.sparsity)


def finish(model: nn.Module) -> tuple[nn.Module, dict[str, Scales]]:
    """Return a plain copy of a model that was prepared, its weights rounded, and the scale of each group by name.

    Of any other model, a copy and no scales.
    """
    copied = copy.deepcopy(model)
    scales: dict[str, Scales] = {}
    shared: dict[int, nn.Parameter] = {}
    for path, module in list(copied.named_modules()):
        if not parametrize.is_parametrized(module):
            continue
        chains = module.parametrizations
        assert isinstance(chains, nn.ModuleDict)
        plain = {}
        for name, chain in chains.items():
            rounding = chain[0]  # type: ignore[index]
            assert isinstance(rounding, FakeQuantization), "a student is parametrized by `prepare` alone"
            weight = nn.Parameter(getattr(module, name).detach().clone())
            plain[name] = shared.setdefault(id(chain), weight)
            scales[f"{path}.{name}" if path else name] = rounding.scales().detach().cpu().numpy()
        # As parametrize.remove_parametrizations does it, but for this module alone: copies share their class, and it
        # would take the weight away from all of them.
        module.__class__ = type(module).__bases__[0]
        del module._modules["parametrizations"]
        module._parameters = {**plain, **module._parameters}
    return copied, scales


def sparsify(model: nn.Module, sparsity: float) -> None:
    """Set the weights of the smallest magnitude in the whole model to zero, in place.

    S. Han, J. Pool, J. Tran, W. Dally, "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS
    2015; one threshold for all layers.

    Args:
        model: Its weights of two and more dimensions count, biases and norms do not.
        sparsity: The part of them that will be zero, in [0, 1); those that are zero already count.
    """
    weights = list(dict.fromkeys(weight for _, _, weight in _weights(model)))
    magnitudes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    count = round(sparsity * len(magnitudes))
    smallest = torch.argsort(magnitudes, stable=True)[:count]
    kept = torch.ones(len(magnitudes), dtype=torch.bool)
    kept[smallest] = False
    with torch.no_grad():
        for weight, part in zip(weights, torch.split(kept, [weight.numel() for weight in weights]), strict=True):
            weight.mul_(part.reshape(weight.shape))


def _weights(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """What is quantized, once for each layer that uses it: that layer, the parameter's name in it, the parameter."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1 and parameter.is_floating_point():
                yield module, name, parameter
