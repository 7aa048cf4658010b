"""Quantization-aware training: weights are rounded in every forward pass, and zeros stay zero.

`prepare` adds the rounding to the weights as parametrizations, so that any training loop will do; `finish` removes it.

    learner = quantization_aware.prepare(student, bits=4)
    learner = distill.distill(teacher, learner, inputs, seed=0)
    weights = quantize.quantize(learner, Quantization(bits=4))      # with the learned scales

The gradient passes the rounding unchanged (straight-through estimator: Y. Bengio, N. Leonard, A. Courville, 2013;
B. Jacob et al., "Quantization and Training of Neural Networks", CVPR 2018, section 3), and the step size is learned:
S. Esser et al., "Learned Step Size Quantization", ICLR 2020, equations 1 to 3; as its logarithm, because Adam's steps
have the same size for all parameters: S. Jain et al., "Trained Quantization Thresholds", MLSys 2020, section 3.2.

Weights that are zero stay zero, so a pruned student stays pruned.
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
    """Step: distill the student with rounded weights; `quantize.Quantize` then uses the learned scales.

    Attributes:
        settings: Quantization, and the number of epochs.
        distillation: Distillation, apart from its epochs.
    """

    settings: Quantization
    distillation: Distillation = Distillation()

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the student with its model prepared and trained; it is evaluated after its quantization.

        Args:
            student: Student to train.
            materials: Models, data and seed.
        """
        learned = distill.distill(
            materials.teacher,
            prepare_for(student.model, self.settings),
            materials.inputs,
            replace(self.distillation, epochs=self.settings.qat_epochs),
            targets=materials.targets,
            class_axis=materials.class_axis,
            seed=seeds.derive("aware", materials.seed),
        )
        return student.after("", learned)


class FakeQuantization(nn.Module):
    """Parametrization that rounds weights (channels, ...) to codes times learned scales; zeros stay zero.

    Args:
        weight: Initial weight, (channels, ...), which determines the zeros and the initial scales.
        bits: Bits of a code.
        group: Weights of a channel that share a scale; 0: all of them.
        search: Whether initial scales minimize the squared error, as in `quantized_tensor.find_scales`.
    """

    mask: Tensor

    def __init__(self, weight: Tensor, bits: int, group: int, search: bool) -> None:
        super().__init__()
        self.largest, self.group = quantized_tensor.levels(bits), group
        scales = quantized_tensor.find_scales(weight.detach().cpu().float().numpy(), bits, group, search)
        self.logarithms = nn.Parameter(torch.from_numpy(np.log2(np.where(scales > 0, scales, 1))))  # (channels, groups)
        self.register_buffer("mask", weight.detach() != 0)

    def scales(self) -> Tensor:
        """Return the learned scales at the nearest power of 2^(1/16), float32 (channels, groups); gradients pass."""
        rounded = torch.round(self.logarithms.detach() * quantized_tensor.FINENESS)
        exponents = rounded.long().clamp(quantized_tensor.MIN_EXPONENT, quantized_tensor.MAX_EXPONENT)
        exact = torch.from_numpy(quantized_tensor.powers(exponents.cpu().numpy())).to(self.logarithms.device)
        smooth = torch.exp2(self.logarithms)
        return exact + (smooth - smooth.detach())

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, of its shape."""
        scales = self.scales()[..., None]
        rows = (weight * self.mask).flatten(1)
        length = rows.shape[1]
        if self.group:
            rows = nn.functional.pad(rows, (0, scales.shape[1] * self.group - length))
        steps = (rows.reshape(len(rows), scales.shape[1], -1) / scales).clamp(-self.largest, self.largest)
        codes = steps + (torch.round(steps) - steps).detach()
        return (codes * scales).flatten(1)[:, :length].reshape(weight.shape)


def prepare(model: nn.Module, bits: int, group: int = 0, *, search: bool = True, sparsity: float = 0.0) -> nn.Module:
    """Return a copy of the model whose weights of two or more dimensions are rounded in every forward pass.

    The copy trains as any model does, with the scales as additional parameters.

    Args:
        model: The model; untouched.
        bits: Bits of a code.
        group: Weights of a channel that share a scale; 0: all of them.
        search: Whether initial scales minimize the squared error, as in `quantized_tensor.find_scales`.
        sparsity: Fraction of the weights to set to zero first, as `sparsify` does.
    """
    copied = copy.deepcopy(model)
    if sparsity:
        sparsify(copied, sparsity)
    chains: dict[int, nn.Module] = {}  # by weight: a weight of two layers stays shared
    for module, name, weight in list(_weights(copied)):
        parametrize.register_parametrization(module, name, FakeQuantization(weight, bits, group, search))
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        parametrizations[name] = chains.setdefault(id(weight), parametrizations[name])
    return copied


def prepare_for(model: nn.Module, settings: Quantization) -> nn.Module:
    """Return a copy of the model prepared for training, rounded as `quantize.quantize` does with these settings.

    Args:
        model: The model; untouched.
        settings: Quantization.
    """
    search = settings.scale == "least-squares"
    return prepare(model, settings.bits, settings.group_size, search=search, sparsity=settings.sparsity)


def finish(model: nn.Module) -> tuple[nn.Module, dict[str, Scales]]:
    """Return a plain copy of a prepared model with rounded weights, and the scales by parameter name.

    For any other model, return a copy and no scales.
    """
    copied = copy.deepcopy(model)
    scales: dict[str, Scales] = {}
    shared: dict[int, nn.Parameter] = {}
    for path, module in list(copied.named_modules()):
        if not parametrize.is_parametrized(module):
            continue
        chains = module.parametrizations
        assert isinstance(chains, nn.ModuleDict)
        if not all(isinstance(chain[0], FakeQuantization) for chain in chains.values()):  # type: ignore[index]
            continue  # a parametrization of the model's own, such as weight_norm
        plain = {}
        for name, chain in chains.items():
            rounding = chain[0]  # type: ignore[index]
            assert isinstance(rounding, FakeQuantization)
            weight = nn.Parameter(getattr(module, name).detach().clone())
            plain[name] = shared.setdefault(id(chain), weight)
            scales[f"{path}.{name}" if path else name] = rounding.scales().detach().cpu().numpy()
        # As parametrize.remove_parametrizations, but for this module alone: copies share their class, so that function
        # would remove the weight from all of them.
        module.__class__ = type(module).__bases__[0]
        del module._modules["parametrizations"]
        module._parameters = {**plain, **module._parameters}
    return copied, scales


def sparsify(model: nn.Module, sparsity: float) -> None:
    """Set the smallest weights of the whole model to zero, in place: global magnitude pruning.

    S. Han, J. Pool, J. Tran, W. Dally, "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS
    2015; one threshold for all layers.

    Args:
        model: The model, whose weights of two or more dimensions are ranked.
        sparsity: Fraction of them that will be zero, in [0, 1), those that are zero already included.
    """
    weights = list(dict.fromkeys(weight for _, _, weight in _weights(model)))
    magnitudes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    count = round(sparsity * len(magnitudes))
    smallest = torch.argsort(magnitudes, stable=True)[:count]
    kept = torch.ones(len(magnitudes), dtype=torch.bool)
    kept[smallest] = False
    with torch.no_grad():
        for weight, flags in zip(weights, torch.split(kept, [weight.numel() for weight in weights]), strict=True):
            weight.mul_(flags.reshape(weight.shape))


def _weights(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield module, name and parameter of each weight to quantize, once for each module that uses it."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1 and parameter.is_floating_point():
                yield module, name, parameter
