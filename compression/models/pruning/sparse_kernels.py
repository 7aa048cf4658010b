"""Sparse execution: each layer of a sparse model is timed dense and sparse on this CPU, and the faster is kept.

A linear layer is a product of its weights (outputs, inputs) with the inputs, and a convolution one of its weights
(outputs, channels * kernel) with the patches of the image (im2col). Sparse weights are in torch's compressed rows
(CSR). On a GPU, tensor cores multiply weights in 2:4 blocks: `semi_structured`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.sparse import to_sparse_semi_structured
from torch.utils import benchmark

from fedpress.compression.errors import FedpressError
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.pruning import weights
from fedpress.compression.models.step import LayerTiming, Materials, Student

TIMED_SECONDS = 0.05
"""Duration of each measurement of a student's latency."""


class SparseError(FedpressError, ValueError):
    """The weights lack the pattern that this execution needs, or there is no GPU."""


class SparseLinear(nn.Module):
    """Linear layer with weights in compressed rows, for inference only.

    Args:
        layer: Dense layer.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", _compressed_rows(layer.weight))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        rows = x.reshape(-1, x.shape[-1])
        outputs = (self.weight @ rows.T).T
        return (outputs if self.bias is None else outputs + self.bias).reshape(*x.shape[:-1], -1)


class SparseConv2d(nn.Module):
    """Convolution as a product of weights in compressed rows with patches.

    Args:
        layer: Dense convolution of one group, with zero padding.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(layer.padding, str)  # by _can_be_sparse
        self.weight: Tensor
        self.register_buffer("weight", _compressed_rows(layer.weight.flatten(1)))
        self.bias = layer.bias
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.padding, self.dilation = layer.padding, layer.dilation

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, height, width) to (N, outputs, height', width')."""
        patches = functional.unfold(
            x, self.kernel_size, dilation=self.dilation, padding=self.padding, stride=self.stride
        )  # (N, channels * kernel, places)
        count, size, places = patches.shape
        outputs = self.weight @ patches.transpose(0, 1).reshape(size, count * places)
        if self.bias is not None:
            outputs = outputs + self.bias[:, None]
        height = _places(x.shape[2], self, 0)
        return outputs.reshape(-1, count, height, places // height).transpose(0, 1)


def faster(
    model: nn.Module, example_input: Batch, seconds: float = 0.2, sparse_below: float = 0.5
) -> tuple[nn.Module, list[LayerTiming]]:
    """Return the model with each layer in its faster form, and the latencies.

    Outputs are equal up to the order of sums. Layers of other kinds, grouped convolutions and layers of a density above
    `sparse_below` are not timed and stay dense.

    Args:
        model: Model with zeros where weights were pruned; untouched.
        example_input: Batch of inputs of the size in use, (N, ...), on which the gain depends.
        seconds: Duration of each measurement.
        sparse_below: Highest density at which sparse execution is tried.
    """
    executed = copy.deepcopy(model).cpu().eval()
    inputs = _inputs_of_layers(executed, example_input)
    timings = []
    for name, (layer, layer_inputs) in inputs.items():
        density = float((layer.weight != 0).float().mean())
        if density > sparse_below or not _can_be_sparse(layer):
            continue
        sparse = SparseLinear(layer) if isinstance(layer, nn.Linear) else SparseConv2d(layer)
        dense_ms, sparse_ms = milliseconds(layer, layer_inputs, seconds), milliseconds(sparse, layer_inputs, seconds)
        chosen = "sparse" if sparse_ms < dense_ms else "dense"
        timings.append(LayerTiming(name, density, dense_ms, sparse_ms, chosen))
        if sparse_ms < dense_ms:
            path, _, attribute = name.rpartition(".")
            setattr(executed.get_submodule(path), attribute, sparse)
    return executed, timings


def time_layers(student: Student, materials: Materials) -> Student:
    """Step: time the layers of a sparse student, sparse and dense; its model stays as it is.

    Args:
        student: Student with zeros where weights were pruned.
        materials: Data.
    """
    _, timings = faster(student.model, materials.example, TIMED_SECONDS)
    return replace(student.after("", student.model), timings=tuple(timings))


def milliseconds(model: nn.Module, inputs: Batch, seconds: float) -> float:
    """Return the median latency of a forward pass, without gradients and on one thread, in milliseconds.

    Args:
        model: Model or layer.
        inputs: Batch of inputs, (N, ...).
        seconds: Duration of the measurement.
    """
    with torch.no_grad():
        given = {"call": model_inputs.call, "model": model, "inputs": inputs}
        timer = benchmark.Timer("call(model, inputs)", globals=given, num_threads=1)
        return 1e3 * float(timer.blocked_autorange(min_run_time=seconds).median)


def semi_structured(model: nn.Module) -> nn.Module:
    """Return the model in half precision on the GPU, its linear layers as 2:4 blocks where sizes allow.

    torch requires multiples of 32 rows and 64 columns; other layers stay dense.

    Args:
        model: Model pruned with `weights.semi_structured`; untouched.

    Raises:
        SparseError: There is no GPU, or a linear layer of such a size is not in 2:4 blocks.
    """
    if not torch.cuda.is_available():
        raise SparseError("2:4 blocks are multiplied by a CUDA GPU only, and there is none; on a CPU see `faster`")
    executed = copy.deepcopy(model).half().cuda().eval()
    for name, layer in executed.named_modules():
        if isinstance(layer, nn.Linear) and not layer.out_features % 32 and not layer.in_features % 64:
            if not weights.is_semi_structured(layer.weight != 0):
                raise SparseError(
                    f"layer {name!r} has more than two weights in a block of four: prune it to 2:4 before"
                )
            layer.weight = nn.Parameter(to_sparse_semi_structured(layer.weight.detach()), requires_grad=False)
    return executed


def _compressed_rows(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return weight.detach().to_sparse_csr()


def _inputs_of_layers(model: nn.Module, example: Batch) -> dict[str, tuple[nn.Linear | nn.Conv2d, Tensor]]:
    """Return each linear layer and convolution with its inputs, by name, in the order of execution."""
    inputs: dict[str, tuple[nn.Linear | nn.Conv2d, Tensor]] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            inputs[name] = (layer, given[0])

        return hook

    hooks = [
        module.register_forward_pre_hook(remember(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            model_inputs.call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def _can_be_sparse(layer: nn.Linear | nn.Conv2d) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _places(size: int, layer: SparseConv2d, axis: int) -> int:
    """Return the number of positions of the kernel along an axis of `size`, by the formula of nn.Conv2d."""
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
    return (size + 2 * int(layer.padding[axis]) - reach) // layer.stride[axis] + 1
